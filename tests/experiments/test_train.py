"""The command that trains classifiers, on discs and squares of 16×16 pixels."""

from __future__ import annotations

import pytest
import torch

from datasets.registry import open_dataset
from experiments.stress.classifiers import load_classifiers
from experiments.train import main
from experiments.training.options import Options
from experiments.training.plan import resolve
from experiments.training.run import describe
from experiments.training.store import folder_of, list_trained, load_trained
from mechanisms.runs.command import run_command
from mechanisms.runs.files import read_json, write_json
from tests.errors import says
from tests.experiments.toy import COMMON, PLAIN, command, files


def test_every_algorithm_leaves_what_the_others_read(trained):
    found = list_trained(trained)
    assert len(found) == 2 * len(PLAIN) and found[:2] == [("erm", 0), ("erm", 1)]
    for name, seed in found:
        folder = folder_of(trained, name, seed)
        assert {"config.json", "metrics.jsonl", "checkpoint.pt", "mechanism.pt"} <= {p.name for p in folder.iterdir()}
        for rule in ("last", "iid", "worst-group", "oracle"):
            classifier = load_trained(trained, name, seed, rule)
            assert classifier.predict(torch.rand(3, 1, 16, 16)).shape == (3, 2) and not classifier.network.training
            assert (classifier.algorithm, classifier.seed, classifier.rule) == (name, seed, rule)


def test_what_is_finished_is_not_trained_again(trained, toy, capsys):
    before = files(trained)
    command(toy, trained, "--algorithm", "irm,groupdro,jtt,dfr,erm", "--seeds", "2", "--set", "dfr.samplings=2")
    assert files(trained) == before and len(before) > 2 * len(PLAIN) * 4
    out = capsys.readouterr().out
    assert "irm: network mlp (recipe), hidden 8 (recipe)" in out and "| irm              | last " in out
    assert "(majority class)" in out and "selected by" in out.lower() and "Of 96 validation images" in out


def test_another_configuration_is_refused(trained, toy, capsys):
    for arguments, message in [(["--learning-rate", "0.5"], "learning_rate 0.001 → 0.5"),
                               (["--hidden", "9"], "hidden 8 9"),
                               (["--set", "irm.penalty=8"], "penalty 7.0 8.0"),
                               (["--data-fraction", "0.5"], "data_fraction 0.5"), (["--l2", "1"], "l2")]:
        with pytest.raises(SystemExit) as caught:
            command(toy, trained, "--algorithm", "irm", "--seeds", "1", "--no-vectorize", *arguments)
        assert caught.value.code == 2 and says(capsys.readouterr().err, message)


@pytest.mark.parametrize("arguments, message", [
    (["--algorithm", "erm,erm2"], "'erm2' erm"),
    (["--algorithm", "irm", "--option", "parted=false"], "--algorithm irm"),
    (["--algorithm", "cf-augmentation"], "--model RUN --truth"),
    (["--algorithm", "masktune"], "--network mlp smallcnn"),
    (["--option", "alike=true"], "training 'shape'"),
    (["--label", "colour"], "'colour'"), (["--spurious", "size"], "'size'"),
    (["--network", "resnet"], "'resnet' mlp smallcnn"),
    (["--set", "irm.eta=1"], "irm 'eta' penalty anneal rescale reset unbiased"),
    (["--set", "temperature=1"], "'temperature'"),
    (["--set", "penalty"], "--set 'penalty' KEY=VALUE"),
    (["--algorithm", "irm", "--set", "penalty=big"], "--set penalty=big 'big'"),
    (["--algorithm", "irm", "--set", "penalty=-1"], "irm penalty=-1.0"),
    (["--network", "smallcnn", "--ema", "0.9"], "--network"),
    (["--seeds", "0"], "--seeds 0 1"), (["--l2", "-1"], "--l2 -1.0"),
    (["--steps", "5", "--epochs", "1"], "--epochs --steps --minutes"), (["--truth", "--model", "nowhere"], "--truth --model"),
])
def test_mistakes_on_the_command_line(toy, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        command(toy, tmp_path / "run", *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and says(error, message) and "Traceback" not in error
    assert not list(tmp_path.rglob("mechanism.pt"))


def test_other_images_of_the_same_statistics_are_refused(toy, tmp_path, capsys):
    arguments = ("--algorithm", "erm", "--seeds", "1", "--option", "size=64")
    command(toy, tmp_path / "run", *arguments)
    (tmp_path / "run").rename(tmp_path / "moved")
    command(toy, tmp_path / "moved", *arguments)
    before = files(tmp_path)
    with pytest.raises(SystemExit):
        command(toy, tmp_path / "moved", *arguments, "--option", "dim=0.2")
    error = " ".join(capsys.readouterr().err.split())
    assert says(error, tmp_path / "moved", "toy.py (size=64)") and files(tmp_path) == before
    assert says(error, "toy.py (size=64, dim=0.2) --run")
    record = read_json(tmp_path / "moved" / "run.json")
    write_json(tmp_path / "moved" / "run.json", {name: value for name, value in record.items() if name != "rows"})
    command(toy, tmp_path / "moved", *arguments)  # older ones say nothing of rows


def test_describe_trains_nothing_and_tells_all(toy, capsys, tmp_path):
    command(toy, tmp_path / "run", "--algorithm", "all", "--describe")
    out = capsys.readouterr().out
    assert "vrex: V-REx" in out and "--set vrex.penalty=9.0: Weight λ of the penalty once it is annealed." in out
    assert "--set irm.penalty=7.0" in out and "needs environments" in out and not (tmp_path / "run").exists()
    assert all(line.split(": ", 1)[1] for line in out.splitlines() if line.startswith("  --set"))
    assert describe(open_dataset(toy), ["erm"]).startswith("erm: ERM\n  assumes that ")


def test_a_learned_model_makes_the_counterfactuals(tiny_run, tmp_path, capsys):
    record = read_json(tiny_run / "run.json")
    options = [word for key, value in record["options"].items() for word in ("--option", f"{key}={value}")]
    arguments = ["--dataset", record["dataset"], *options, "--label", "digit", "--spurious", "thickness", "--algorithm", "cf-consistency",
                 "--seeds", "1", "--steps", "2", "--network", "mlp", "--hidden", "8", "--counterfactuals", "2", *COMMON]
    run_command(Options, main, [*arguments, "--model", str(tiny_run), "--run", str(tmp_path)])
    made = load_trained(tmp_path, "cf-consistency", 0).description["counterfactuals"]
    assert made.endswith(", 2") and len(made) > 10 and "| cf-consistency" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(Options, main, [*arguments, "--truth", "--run", str(tmp_path)])
    assert says(capsys.readouterr().err, "counterfactuals --overwrite")


def test_names_are_taken_with_underscores_everywhere(toy, tmp_path, capsys):
    command(toy, tmp_path, "--algorithm", "label_smoothing", "--seeds", "1", "--steps", "2", "--set", "label_smoothing.smoothing=0.25")
    assert "label-smoothing: network mlp" in (out := capsys.readouterr().out) and "smoothing 0.25 (flag)" in out
    assert list_trained(tmp_path) == [("label-smoothing", 0)]
    (found,) = load_classifiers(tmp_path, ["label_smoothing"], "last", "cpu")
    assert found.algorithm == "label-smoothing"
    dataset = open_dataset(toy)
    dataset.recipes = {**dataset.recipes, "label_smoothing": {"smoothing": 0.5}}
    assert resolve("label_smoothing", dataset).settings.smoothing == 0.5 == resolve("label-smoothing", dataset).settings.smoothing

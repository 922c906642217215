"""The grid of counterfactuals: what the command refuses, what it prints, and what its figures show."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch

from datasets.base import CausalDataset
from datasets.schema import Graph, Variable
from dscm import DSCM
from dscm.counterfactual import Options, main
from dscm.figures.attributes import attribute_figure
from dscm.figures.grid import Column, counterfactual_grid
from dscm.figures.run import answer
from dscm.figures.style import heading, save_figure, written
from dscm.figures.training import training_curves
from dscm.model import Counterfactual
from dscm.runs import open_run
from mechanisms.runs.command import run_command
from mechanisms.runs.files import MetricsLog, RunError
from mechanisms.training.devices import find_device
from pgm.interventions import parse_do
from tests.errors import naming, says


@pytest.fixture(scope="module")
def opened(tiny_run: Path) -> tuple[DSCM, CausalDataset]:
    return open_run(tiny_run, "cpu")


def columns_of(opened, do, rows=(0, 5), **given) -> tuple[dict, list[Column]]:
    dscm, dataset = opened
    index = torch.tensor(rows)
    marginals, generator = dataset.split("train").attributes, torch.Generator().manual_seed(0)
    interventions = parse_do(do, dataset.graph, marginals, generator)
    return dataset.split("test").batch(index), answer(dscm, dataset, "test", index, interventions, **given)


# -------------------------------------------------------------------------------------------------------- the command
def test_the_command_writes_a_grid_and_says_what_it_did(tiny_run, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    run_command(Options, main, ["--run", str(tiny_run), "--do", "thickness=2.5,9", "--do", "digit=3", "--do", "intensity~marginal",
                                "--rows", "3,17", "--draws", "2", "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert f"wrote {out}" in printed and "2 images of morphomnist's test split, 2 posterior draws, residual temperature 1" in printed
    lines = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("|")}
    assert list(lines)[2:] == ["thickness=2.5", "thickness=9", "digit=3", "intensity~marginal"]
    assert "2 of 2" in lines["thickness=9"] and "none" in lines["thickness=2.5"]
    assert "not known" in lines["digit=3"] and "±" in lines["intensity~marginal"]
    pixels = matplotlib.image.imread(out)
    assert min(pixels.shape[:2]) > 600 and (pixels[:8, :, :3] == 1).all()  # a white page
    assert not list(out.parent.glob(".*"))


def test_the_same_seed_makes_the_same_file(tiny_run, tmp_path):
    files = [tmp_path / f"{k}.png" for k in "abc"]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        main(Options(tiny_run, ("thickness~marginal",), file, count=2, draws=2, seed=seed, device="cpu"))
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


@pytest.mark.parametrize(("arguments", "message"), [
    (["--do", "shoe_size=3"], "'shoe_size' thickness digit intensity"),
    (["--do", "intensity=300"], "intensity=300 'intensity=300' intensity [64, 255]"),
    (["--do", "digit=12"], "'digit=12' digit 10"),
    (["--do", "thickness+=-9"], "thickness 0"),
    (["--do", "thickness"], "'thickness'"),
    ([], "--do"),
    (["--do", "digit=3", "--count", "33"], "--count 33 test 32 1..32"),
    (["--do", "digit=3", "--count", "0"], "--count 0"),
    (["--do", "digit=3", "--rows", "3,32"], "32 0..31"),
    (["--do", "digit=3", "--rows", "3-7"], "--rows '3-7'"),
    (["--do", "digit=3", "--draws", "0"], "--draws 0 [1, 10000]"),
    (["--do", "digit=3", "--temperature", "-1"], "--temperature -1.0"),
    (["--do", "digit=3", "--out", "grid.xyz"], ".xyz png"),
    (["--do", "digit=3", "--out", "."], "png"),
    (["--do", "digit=3", "--run", "nowhere"], "nowhere pgm.train --run"),
])
def test_refusals_are_one_line(tiny_run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_command(Options, main, ["--run", str(tiny_run), "--device", "cpu", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and says(error, message) and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("folder", "command"), [("pgm", "pgm.train"), ("image", "mechanisms.train")])
def test_a_missing_mechanism_is_named_with_its_command(tiny_run, tmp_path, folder, command):
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / folder)
    with pytest.raises(RunError, match=naming(tmp_path / "run", folder, command)):
        main(Options(tmp_path / "run", ("digit=3",), tmp_path / "grid.png"))


def test_a_place_that_cannot_be_written_is_refused_and_an_earlier_file_kept(tiny_run, tmp_path, monkeypatch, opened):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RunError, match=naming(tmp_path / "folder.png")):
        main(Options(tiny_run, ("digit=3",), tmp_path / "folder.png"))
    figure, out = training_curves(MetricsLog.read(tiny_run / "pgm" / "metrics.jsonl")), tmp_path / "kept.png"
    out.write_text("earlier")

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(RunError, match=naming(out, "No space left")):
        save_figure(figure, out)
    assert out.read_text() == "earlier" and len(list(tmp_path.iterdir())) == 2


def test_a_data_set_that_changed_since_is_refused(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"96"', '"95"'))
    with pytest.raises(RunError, match=naming(tmp_path / "run", "morphomnist thickness.statistics")):
        open_run(tmp_path / "run", "cpu")


def test_help_needs_no_torch():
    code = "import sys, dscm.counterfactual; assert not {'torch', 'matplotlib', 'pyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert find_device("cpu") == torch.device("cpu")


# -------------------------------------------------------------------------------------------------------- answers
def test_model_and_truth_get_the_same_values(opened):
    observed, columns = columns_of(opened, ["thickness~marginal", "thickness+=0.5", "intensity=100", "digit=3"])
    for column, name in zip(columns, ("thickness", "thickness", "intensity", "digit"), strict=True):
        if name == "digit":
            assert column.truth is None
        else:
            assert torch.equal(column.answer[name], column.truth[name])
            assert column.truth["image"].shape == observed["image"].shape
    assert torch.allclose(columns[1].answer["thickness"], observed["thickness"] + 0.5)
    assert not torch.equal(columns[0].answer["thickness"], columns[1].answer["thickness"])


# -------------------------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize(("draws", "truths"), [(None, True), (3, True), (None, False)])
def test_the_grid_shows_each_image_its_difference_and_its_truth(opened, draws, truths):
    observed, columns = columns_of(opened, ["thickness=1.5,3"] if truths else ["digit=2,3"], draws=draws)
    figure = counterfactual_grid(observed, columns, opened[1].graph, "A title")
    shown = figure.axes[0].images
    assert len(shown) == 2 * (1 + 2 * (2 + truths + (draws is not None)))
    assert torch.equal(torch.as_tensor(shown[0].get_array()), observed["image"][0, 0])
    assert torch.equal(torch.as_tensor(shown[1].get_array()), columns[0].answer.image[0, 0])
    reach = max((c.answer.image - observed["image"]).abs().max() for c in columns)
    change = torch.as_tensor(shown[2].get_array()) * max(float(reach), 1 / 255)
    assert torch.allclose(change, (columns[0].answer.image - observed["image"])[0, 0], atol=1e-6)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"A title", "observed", "counterfactual", "difference", heading(columns[0].label)} <= set(texts)
    assert ("truth" in texts) == truths and ("spread" in texts) == (draws is not None) and any("L1" in t for t in texts) == truths


def test_what_lies_beyond_the_training_data_is_marked(opened):
    for value, marked in (("2.5", False), ("9", True)):
        observed, columns = columns_of(opened, f"thickness={value}")
        texts = [text.get_text() for text in counterfactual_grid(observed, columns, opened[1].graph).axes[0].texts]
        assert ("orange: beyond the training data" in texts) == marked


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_change_of_hue_is_not_hidden(channels):
    graph = Graph([Variable("dose", "real"), Variable("image", "image", ("dose",), shape=(channels, 8, 6))])
    graph = graph.fitted({"dose": torch.arange(5.0)})
    image = torch.zeros(1, channels, 8, 6)
    image[:, 0, 2:4] = 1
    observed = {"dose": torch.tensor([1.0]), "image": image}
    moved = Counterfactual({"dose": torch.tensor([2.0])}, image.flip(1) if channels > 1 else 1 - image, {"dose": torch.tensor([False])})
    figure = counterfactual_grid(observed, [Column("dose=2", moved), Column("dose=1", replace(moved, image=image))], graph)
    changes = [torch.as_tensor(figure.axes[0].images[k].get_array()) for k in (2, 4)]
    none = 0.5 if channels in (2, 3) else 0.0
    assert changes[0][3].sub(none).abs().max() > 0.4
    # of two channels the third colour is padding, and padding does not change
    assert torch.allclose(changes[1], torch.full_like(changes[1], none))


def test_words():
    assert [heading(t) for t in ("thickness=3", "age+=5", "age+=-5", "t~marginal", "x=-2", "finding=present")] == [
        "thickness = 3", "age + 5", "age − 5", "t ~ marginal", "x = −2", "finding = present"]
    values = torch.tensor([0.01, 0.02, 0.03])
    assert written(Variable("a", "real").fitted(values), 0.0213) == "0.0213"
    assert written(Variable("a", "real", unit="ml").fitted(1e4 * values), -212.6, unit=True) == "−213 ml"
    assert written(Variable("f", "binary", classes=("absent", "present")), torch.tensor(1)) == "present"


def test_attributes_and_curves(tiny_run, opened, tmp_path):
    dscm, dataset = opened
    training, generator = dataset.split("train").attributes, torch.Generator().manual_seed(0)
    sampled, under = (dscm.attributes.sample(200, do, generator) for do in (None, {"thickness": 3.0}))
    plain, both = (attribute_figure(training, sampled, dataset.graph, given) for given in (None, ("thickness=3", under)))
    for figure, worlds in ((plain, 2), (both, 3)):
        assert len(figure.legends[0].texts) == worlds
        labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes if axes.axison]
        assert labels == [("thickness (px)", ""), ("digit", ""), ("intensity", ""), ("thickness (px)", "intensity")]
        assert save_figure(figure, tmp_path / "attributes.svg").stat().st_size > 1000
    rows = MetricsLog.read(tiny_run / "image" / "metrics.jsonl")
    curves = training_curves(rows)
    assert [axes.get_title(loc="left") for axes in curves.axes] == ["free energy", "distortion", "rate"]
    assert list(curves.axes[0].lines[1].get_ydata()) == [row["valid"]["free_energy"] for row in rows]
    assert training_curves(rows[:1]).axes

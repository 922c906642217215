"""The command that trains classifiers, its trainer, selection and stacked seeds; on discs and squares of 16×16 pixels."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from datasets.base import Split, fingerprint
from datasets.errors import UserError
from datasets.registry import open_dataset
from datasets.schema import SchemaError
from datasets.task import Sizes, task_of
from experiments.algorithms import dfr
from experiments.algorithms.dfr import DFRSettings, halved
from experiments.algorithms.registry import ALGORITHMS, algorithm
from experiments.metrics.groups import left_out, worst_group
from experiments.networks.config import ClassifierConfig
from experiments.networks.registry import build_network
from experiments.stress.classifiers import load_classifiers
from experiments.train import main
from experiments.training.field_help import field_help
from experiments.training.options import Options, TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.run import describe, rows_for, train_classifiers
from experiments.training.selection import criteria, selection_split, shifts_of
from experiments.training.stacked import Stacked, can_stack, learn_stacked, pays
from experiments.training.store import folder_of, list_trained, load_trained, record, results
from experiments.training.trainer import Trainer
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, load, read_json, write_json
from mechanisms.training import loop as training
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.noise import Noise
from mechanisms.training.state import MetricsLog

TOY = '''
from dataclasses import dataclass

import torch

from datasets import CausalDataset, Variable


@dataclass(eq=False)
class Toy(CausalDataset):
    """A disc or a square, dark or light; the environment is the parity of the row."""

    label = "shape"
    spurious = ("light",)
    true_images_under = ("light",)
    variables = (Variable("shape", "binary", classes=("disc", "square")), Variable("light", "binary", ("shape",), classes=("no", "yes")),
                 Variable("image", "image", ("shape", "light"), shape=(1, 16, 16)))
    recipes = {"*": {"network": "mlp", "hidden": 8, "steps": 12, "batch_size": 32, "validations": 3, "penalty": 7.0},
               "vrex": {"penalty": 9.0}}

    size: int = 96
    parted: bool = True
    alike: bool = False
    dim: float = 0.3

    def environments(self, split):
        return torch.arange(self.size) % 2 if self.parted else None

    def shifts(self):
        return {"unlinked": lambda attributes, g: {"light": torch.randint(2, (len(attributes["shape"]),), generator=g)}}

    def load(self, split):
        return self.world(self.noise(split), {})

    def true_counterfactual(self, split, index, do):
        return self.world(self.noise(split)[index], do)

    def noise(self, split):
        return torch.rand(self.size, 4, generator=torch.Generator().manual_seed(("train", "valid", "test").index(split)))

    def world(self, u, do):
        shape = torch.zeros(len(u), dtype=torch.long) if self.alike else (u[:, 0] < 0.5).long()
        light = do.get("light", torch.where(u[:, 1] < 0.85, shape, 1 - shape))
        x = torch.arange(16) - 7.5
        distance = torch.where(shape[:, None, None] == 1, torch.maximum(x.abs()[:, None], x.abs()), torch.hypot(x[:, None], x[None]))
        image = (distance < 3 + 2 * u[:, 2, None, None]).float() * (self.dim + 0.6 * light[:, None, None])
        return {"shape": shape, "light": light, "image": image[:, None]}
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return str(path)


COMMON = ["--device", "cpu", "--precision", "fp32"]
FLAGS = TrainingFlags(device="cpu", precision="fp32")


def command(toy: str, run: Path, *arguments: str) -> None:
    run_command(Options, main, ["--dataset", toy, "--run", str(run), *COMMON, *arguments])


def trainer(toy: str, run: Path, name: str, seed: int = 0, options: RunOptions | None = None, settings: tuple[str, ...] = (),
            **flags: Any) -> Trainer:
    dataset = open_dataset(toy)
    asked = replace(FLAGS, **flags)
    return Trainer(Rows(task_of(dataset)), resolve(name, dataset, asked, settings, seed), options or RunOptions(run),
                   lambda other: resolve(other, dataset, asked, seed=seed))


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


# ---------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory) -> Path:
    """Every algorithm that a network without maps can do, two seeds, with true counterfactuals."""
    run = tmp_path_factory.mktemp("trained")
    names = "erm,reweighting,irm,vrex,groupdro,fishr,coral,mixup,lisa,jtt,dfr,cf-augmentation,cf-consistency"
    command(toy, run, "--algorithm", names, "--seeds", "2", "--truth", "--set", "dfr.samplings=2")
    return run


def test_every_algorithm_leaves_what_the_others_read(trained):
    found = list_trained(trained)
    assert len(found) == 26 and found[:2] == [("erm", 0), ("erm", 1)]
    for name, seed in found:
        folder = folder_of(trained, name, seed)
        assert {"config.json", "metrics.jsonl", "checkpoint.pt", "mechanism.pt"} <= {p.name for p in folder.iterdir()}
        for rule in ("last", "iid", "worst-group", "oracle"):
            classifier = load_trained(trained, name, seed, rule)
            assert classifier.predict(torch.rand(3, 1, 16, 16)).shape == (3, 2) and not classifier.network.training
            assert (classifier.algorithm, classifier.seed, classifier.rule) == (name, seed, rule)


def test_rows_of_results_are_of_the_log(trained):
    rows = results(trained)
    assert len(rows) == 26 and {row["rows"] for row in rows if row["algorithm"] != "dfr"} == {96}
    assert {row["rows"] for row in rows if row["algorithm"] == "dfr"} == {48} and all(0.5 <= row["majority"] < 0.65 for row in rows)
    row = next(row for row in rows if (row["algorithm"], row["seed"]) == ("irm", 1))
    log = {r["step"]: r["valid"] for r in MetricsLog.read(folder_of(trained, "irm", 1) / "metrics.jsonl")}
    assert row["steps"] == row["rules"]["last"]["step"] == 12 and sorted(log) == [4, 8, 12]
    for found in row["rules"].values():
        means = log[found["step"]]
        assert found["accuracy"] == means["accuracy"] and found["shifted"] == means["shift_0"]
        assert found["worst_group"] == min(means[f"group_{g}"] for g in range(4))
    assert row["rules"]["iid"]["accuracy"] == max(means["accuracy"] for means in log.values())
    assert row["rules"]["oracle"]["shifted"] == max(means["shift_0"] for means in log.values())


def test_logged_accuracies_are_those_of_the_classifier(trained, toy):
    dataset = open_dataset(toy)
    task, row = task_of(dataset), results(trained)[0]
    rows = task.split("valid").batch(slice(None))
    right = load_trained(trained, row["algorithm"], row["seed"]).predict(rows["image"]).argmax(1) == rows["label"]
    assert right.float().mean().item() == pytest.approx(row["rules"]["last"]["accuracy"], abs=1e-6)
    groups = [right[rows["group"] == g].float().mean().item() for g in range(4)]
    assert min(groups) == pytest.approx(row["rules"]["last"]["worst_group"], abs=1e-6)


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All that is written, with its time."""
    every = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path: (0 if path.suffix == ".tsv" else path.stat().st_mtime_ns, path.read_bytes()) for path in every}  # tables are written anew


def counted(monkeypatch) -> list[str]:
    """The folder of every training that is begun from now on, in ``<run>/classifiers``."""
    begun, genuine = [], training.fit

    def fit(model, train, valid, config, folder, description, options, *rest, **named):
        before = files(folder) if folder.exists() else None
        result = genuine(model, train, valid, config, folder, description, options, *rest, **named)
        if before is None or files(folder) != before:
            begun.append("/".join(folder.parts[folder.parts.index("classifiers") + 1 :]))
        return result

    for module in ("trainer", "stacked"):
        monkeypatch.setattr(f"experiments.training.{module}.fit", fit)
    return begun


def test_what_is_finished_is_not_trained_again(trained, toy, capsys):
    before = files(trained)
    command(toy, trained, "--algorithm", "irm,groupdro,jtt,dfr,erm", "--seeds", "2", "--set", "dfr.samplings=2")
    assert files(trained) == before and len(before) > 26 * 4
    out = capsys.readouterr().out
    assert "irm: network mlp (recipe), hidden 8 (recipe)" in out and "| irm              | last " in out
    assert "(majority class)" in out and "selected by" in out.lower() and "Of 96 validation images" in out


def test_another_configuration_is_refused(trained, toy, capsys):
    for arguments, message in [(["--learning-rate", "0.5"], "learning_rate 0.001 → 0.5"),
                               (["--hidden", "9"], "its hidden differ: hidden: 8 there, 9 asked"),
                               (["--set", "irm.penalty=8"], "(its settings differ: penalty: 7.0 there, 8.0 asked)"),
                               (["--data-fraction", "0.5"], "data_fraction: nothing there, 0.5 asked"), (["--l2", "1"], "its l2 differ")]:
        with pytest.raises(SystemExit) as caught:
            command(toy, trained, "--algorithm", "irm", "--seeds", "1", "--no-vectorize", *arguments)
        assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["--algorithm", "erm,erm2"], "unknown algorithm 'erm2'; valid are erm, "),
    (["--algorithm", "irm", "--option", "parted=false"], "--algorithm irm needs at least two training environments, but"),
    (["--algorithm", "cf-augmentation"], "nothing makes them: give --model RUN (a trained model), or --truth"),
    (["--algorithm", "masktune"], "--network mlp has no layer of maps; take --network smallcnn"),
    (["--option", "alike=true"], "has one class of 'shape' only; there is nothing to classify"),
    (["--label", "colour"], "unknown label 'colour'; "), (["--spurious", "size"], "unknown spurious attribute 'size'"),
    (["--network", "resnet"], "unknown network 'resnet'; valid are mlp, smallcnn"),
    (["--set", "irm.eta=1"], "irm has no setting 'eta'; valid are penalty, anneal, rescale, reset, unbiased"),
    (["--set", "temperature=1"], "no algorithm has a setting 'temperature'; valid are "),
    (["--set", "penalty"], "--set 'penalty' is not KEY=VALUE"),
    (["--algorithm", "irm", "--set", "penalty=big"], "--set penalty=big: 'big' is no float"),
    (["--algorithm", "irm", "--set", "penalty=-1"], "irm: penalty=-1.0 must not be negative"),
    (["--network", "smallcnn", "--ema", "0.9"], "not the statistics of --network smallcnn's batch norm"),
    (["--seeds", "0"], "--seeds 0 must be at least 1"), (["--l2", "-1"], "--l2 -1.0 must not be negative"),
    (["--steps", "5", "--epochs", "1"], "give exactly one budget"), (["--truth", "--model", "nowhere"], "give one of them"),
])
def test_mistakes_on_the_command_line(toy, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        command(toy, tmp_path / "run", *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.rglob("mechanism.pt"))


def test_groups_are_needed_where_they_are(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(TOY.replace('spurious = ("light",)', "spurious = ()"))
    with pytest.raises(SchemaError, match="--algorithm groupdro needs groups, but Toy names no spurious attribute.*--spurious NAME"):
        train_classifiers(rows_for(open_dataset(str(path))), ["groupdro"], [0], FLAGS, (), RunOptions(tmp_path / "run"), Options().data)


def test_a_network_of_ours_takes_no_pretrained_weights_from_a_recipe(tmp_path):
    path = tmp_path / "deep.py"
    path.write_text(TOY.replace('"network": "mlp", "hidden": 8,', '"network": "resnet18", "weights": "default", "frozen": True,'))
    dataset = open_dataset(str(path))

    def asked(**flags: Any) -> ClassifierConfig:
        return resolve("erm", dataset, replace(FLAGS, **flags)).classifier

    assert asked(network="resnet50") == ClassifierConfig("resnet50", weights="default", frozen=True)
    assert [asked(network=name) for name in ("small", "mlp")] == [ClassifierConfig("small"), ClassifierConfig("mlp")]
    assert asked(network="mlp", frozen=True, weights="w.pt") == ClassifierConfig("mlp", weights="w.pt", frozen=True)  # the user's own


def test_settings_in_words(toy):
    plan = resolve("cf-f", open_dataset(toy), replace(FLAGS, batch_size=1_000_000, learning_rate=1 / 3))
    told = plan.in_words(999)
    assert "batch-size whole split (flag)" in told and "batch-size 1000000" in plan.in_words(1_000_001)
    assert "learning-rate 0.33333 (flag)" in told and "cf-folder" not in told and "cf-loss negative" in told


def test_an_empty_environment_is_named(tmp_path):
    path = tmp_path / "gap.py"
    path.write_text(TOY.replace("torch.arange(self.size) % 2 if", "torch.arange(self.size) % 2 * 2 if"))
    with pytest.raises(SchemaError, match="environment 1 of Toy is empty in training"):
        train_classifiers(rows_for(open_dataset(str(path))), ["vrex"], [0], FLAGS, (), RunOptions(tmp_path / "run"), Options().data)


def test_other_images_of_the_same_statistics_are_refused(toy, tmp_path, capsys):
    arguments = ("--algorithm", "erm", "--seeds", "1", "--option", "size=64")
    command(toy, tmp_path / "run", *arguments)
    (tmp_path / "run").rename(tmp_path / "moved")
    command(toy, tmp_path / "moved", *arguments)
    before = files(tmp_path)
    with pytest.raises(SystemExit):
        command(toy, tmp_path / "moved", *arguments, "--option", "dim=0.2")
    error = " ".join(capsys.readouterr().err.split())
    assert "belongs to other training images: it was begun with" in error and "toy.py (size=64)" in error and files(tmp_path) == before
    assert "toy.py (size=64, dim=0.2). Give the options that it was begun with, or choose another --run" in error
    record = read_json(tmp_path / "moved" / "run.json")
    write_json(tmp_path / "moved" / "run.json", {name: value for name, value in record.items() if name != "rows"})
    command(toy, tmp_path / "moved", *arguments)  # older ones say nothing of rows


def test_images_that_are_read_one_by_one_are_told_apart():
    class Lazy(list):
        pass

    def split(value: int) -> Split:
        return Split("train", Lazy(torch.full((1, 2, 2), value, dtype=torch.uint8) for _ in range(3)), {"x": torch.zeros(3)})

    index = torch.arange(3)
    assert fingerprint(split(1), index, lazy=True) == fingerprint(split(1), index, lazy=True) != fingerprint(split(2), index, lazy=True)
    assert fingerprint(split(1), index) == fingerprint(split(2), index)


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
    assert "its counterfactuals differ" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- resolution
def test_flags_win_over_recipes_over_defaults(toy):
    dataset = open_dataset(toy)
    plain = resolve("vrex", dataset)
    assert plain.settings.penalty == 9 and plain.classifier.hidden == 8 and plain.training.steps == 12 and plain.training.epochs is None
    assert resolve("irm", dataset).settings.penalty == 7 and resolve("irm", dataset).settings.anneal == 0.1
    asked = resolve("vrex", dataset, TrainingFlags(hidden=5, epochs=2.0), ["penalty=3", "irm.penalty=4"])
    assert resolve("irm", dataset, TrainingFlags(), ["irm.penalty=4", "penalty=3"]).settings.penalty == 4  # whatever their order
    assert asked.settings.penalty == 3 and asked.classifier.hidden == 5 and asked.training.epochs == 2 and asked.training.steps is None
    assert asked.origin["hidden"] == "flag" and asked.origin["network"] == "recipe" and "steps" not in asked.origin
    assert "penalty 3 (flag)" in asked.in_words(96) and "network mlp (recipe)" in asked.in_words(96)
    assert resolve("erm", dataset).training.batch_size == 32 and "penalty" not in resolve("erm", dataset).in_words(96)


def test_every_field_of_network_and_training_has_a_flag(toy):
    every = {f.name for kind in (TrainingConfig, ClassifierConfig) for f in fields(kind)} - {"seed"}
    assert {f.name for f in fields(TrainingFlags)} == every
    parsed: list[Options] = []
    further = ["--workers", "3", "--clip", "2.5", "--skip", "7", "--keep", "best", "--beta2", "0.9", "--patience", "4"]
    run_command(Options, parsed.append, further)
    plan = resolve("erm", open_dataset(toy), parsed[0].training)
    found = plan.training
    assert (found.workers, found.clip, found.skip, found.keep, found.beta2, found.patience) == (3, 2.5, 7.0, "best", 0.9, 4)
    assert plan.origin["workers"] == "flag"
    run_command(Options, parsed.append, [])
    assert parsed[1].training.given() == {"device": "auto"}


@pytest.mark.parametrize(("flags", "named"), [
    (["--algorithm", "erm,erm"], "--algorithm names erm twice"), (["--algorithm", "erm,,irm"], "between commas 1 and 2"),
    (["--spurious", "a,a"], "--spurious names a twice"), (["--set", "penalty=1", "--set", "penalty=2"], "--set names penalty twice"),
    (["--hidden", "1000000000"], "--hidden 1000000000 must lie in"), (["--seeds", "1000000000"], "--seeds 1000000000 must lie in"),
    (["--set", "irm.penalty=nan", "--algorithm", "irm"], "irm: penalty=nan must not be negative, and finite")])
def test_senseless_flags_are_refused_before_anything_is_written(toy, tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        run_command(Options, main, ["--dataset", str(toy), "--run", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2 and named in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_recipe_that_sets_what_is_not_there(toy):
    dataset = open_dataset(toy)
    for recipes, message in [({"erm": {"penalty": 1}}, "the recipe 'erm' sets penalty"), ({"*": {"rate": 1}}, "the recipe '.' sets rate")]:
        type(dataset).recipes, kept = recipes, type(dataset).recipes
        try:
            with pytest.raises(SchemaError, match=message):
                resolve("erm", dataset)
        finally:
            type(dataset).recipes = kept


def test_every_setting_has_a_help_text_and_a_name_of_its_own():
    """A recipe names fields of the training, of the network and of the algorithm side by side."""
    others = {f.name for kind in (TrainingConfig, ClassifierConfig) for f in fields(kind)}
    for kind in ALGORITHMS.values():
        texts = field_help(kind.settings)
        assert all(texts.values()) and not others & texts.keys(), kind.name


# ---------------------------------------------------------------------------------------------------- selection
def test_selection_rows_weigh_as_they_say(toy):
    task = task_of(open_dataset(toy))
    split = selection_split(task, 40)
    columns, rows = split.attributes, split.attributes["row"][:40]
    assert 40 < len(task.split("valid")) and 40 <= int(rows.max()) and torch.equal(rows, rows.unique())  # not the first ones
    assert shifts_of(task) == ["unlinked"] and len(split) == 80 and columns["shift"].tolist() == [0] * 40 + [1] * 40
    for weight, which in (("observed", columns["shift"] == 0), ("in_shift", columns["shift"] == 1)):
        assert columns[weight].mean() == pytest.approx(1) and not columns[weight][~which].any()
    groups = columns["group"][:40]
    assert all((columns["in_group"] * (columns["group"] == g)).mean() == pytest.approx(1) for g in groups.unique())
    assert torch.equal(split.images[:40], task.split("valid").images[rows]) and torch.equal(columns["label"][:40], columns["label"][40:])
    assert not torch.equal(columns["group"][40:], groups)


def test_halves_share_no_image(toy):
    split = selection_split(task_of(open_dataset(toy)), 41)
    first, second = halved(split, torch.Generator().manual_seed(0))
    assert len(first) == 20 and len(second) == 42 and not set(first.attributes["row"].tolist()) & set(second.attributes["row"].tolist())
    assert first.attributes["observed"].mean() == second.attributes["in_shift"].mean() == pytest.approx(1)


def test_criteria_prefer_what_they_say(toy):
    task = task_of(open_dataset(toy))
    rows = Rows(task)
    rules = criteria(rows.selection(96), rows.sizes)
    base = {"loss": 0.5, "accuracy": 0.8, "shift_0": 0.6, **{f"group_{g}": 0.7 for g in range(4)}}
    groups = {f"group_{g}": 0.71 for g in range(4)}
    for rule, better in (("iid", {"accuracy": 0.81}), ("worst-group", groups), ("oracle", {"shift_0": 0.61})):
        assert rules[rule]({**base, **better}) < rules[rule](base)
        assert rules[rule]({**base, "loss": 0.4}) < rules[rule](base) == pytest.approx(rules[rule]({**base, "loss": 900.0}), abs=1e-6)
    largest = int(torch.bincount(rows.selection(96).attributes["group"]).argmax())
    assert worst_group({**base, f"group_{largest}": 0.1}, rows.selection(96)) == 0.1


def test_a_group_of_few_rows_is_not_the_worst():
    def split(*sizes):
        group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return Split("valid", torch.zeros(len(group), 1, 2, 2), {"group": group, "shift": torch.zeros_like(group)})

    means = {"group_0": 0.9, "group_1": 0.2, "group_2": 0.0}
    assert worst_group(means, split(10, 10, 9)) == 0.2
    assert worst_group(means, split(3, 2, 3)) == 0.0  # all are small: the largest count
    assert worst_group(means, split(3, 0, 2)) == 0.9


# ---------------------------------------------------------------------------------------------------- trainer
def test_networks_of_a_seed_are_alike_whatever_was_drawn_before(toy, tmp_path):
    first = trainer(toy, tmp_path, "erm", 3).network().state_dict()
    torch.rand(5)
    assert same(first, trainer(toy, tmp_path, "irm", 3).network().state_dict())
    assert not same(first, trainer(toy, tmp_path, "erm", 4).network().state_dict())


def test_the_base_is_trained_once_and_shared(toy, tmp_path, monkeypatch):
    """And it is one of the run's classifiers."""
    begun, base = counted(monkeypatch), trainer(toy, tmp_path, "jtt").base()
    assert begun == ["erm/seed-0"] and list_trained(tmp_path) == [("erm", 0)] and not base.training
    before = files(tmp_path)
    assert same(trainer(toy, tmp_path, "dfr").base().network.state_dict(), base.network.state_dict())
    again = trainer(toy, tmp_path, "dfr", options=RunOptions(tmp_path, overwrite=True)).base()
    assert same(again.network.state_dict(), base.network.state_dict()) and files(tmp_path) == before and begun == ["erm/seed-0"]
    trainer(toy, tmp_path, "dfr", options=RunOptions(tmp_path, overwrite=True), steps=15).base()  # another plan
    assert begun == ["erm/seed-0"] * 2 and results(tmp_path)[0]["steps"] == 15


def test_overwriting_trains_each_once(toy, tmp_path, monkeypatch):
    """Also with seeds that are stacked, algorithms that begin with others, and these named last."""
    flags = ("--seeds", "1", "--network", "smallcnn", "--hidden", "8", "--steps", "4")
    arguments = ("--algorithm", "dfr,erm,masktune", *flags, "--set", "dfr.samplings=2")
    command(toy, tmp_path, *arguments)
    weights, begun = load(folder_of(tmp_path, "erm", 0) / "mechanism.pt")["weights"], counted(monkeypatch)
    command(toy, tmp_path, *arguments, "--overwrite")
    assert begun == ["erm/seed-0", "dfr/seed-0", "masktune/seed-0"]
    assert same(weights, load(folder_of(tmp_path, "erm", 0) / "mechanism.pt")["weights"])
    begun.clear()
    command(toy, tmp_path, "--algorithm", "dfr", *flags, "--set", "dfr.samplings=3", "--overwrite")
    assert begun == ["dfr/seed-0"] and len(list_trained(tmp_path)) == 3
    begun.clear()
    for again in ((), ("--overwrite",)):
        command(toy, tmp_path / "stacked", "--algorithm", "erm,dfr", "--seeds", "2", "--set", "dfr.samplings=2", *again)
    assert begun == ["erm/seeds-0-1", "dfr/seed-0", "dfr/seed-1"] * 2


def test_what_was_begun_anew_does_not_count_until_it_is_finished(toy, tmp_path, monkeypatch):
    command(toy, tmp_path, "--algorithm", "erm,groupdro", "--seeds", "1")
    for name, options in (("groupdro", {"overwrite": True}), ("erm", {"resume": True})):
        calls = []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("mechanisms.training.loop.agree", lambda v, *_, calls=calls: (v[0], len(calls) > 2 or calls.append(1), v[2]))
            trainer(toy, tmp_path, name, options=RunOptions(tmp_path, **options), steps=12 if name == "groupdro" else 20).learn()
        with pytest.raises(RunError, match=f"{name} of seed 0 in .* is unfinished, at step .*--resume"):
            load_trained(tmp_path, name, 0)
    assert list_trained(tmp_path) == []
    assert [row["algorithm"] for row in results(tmp_path)] == ["erm"]  # its twelve updates were there, their weights are not
    trainer(toy, tmp_path, "groupdro", options=RunOptions(tmp_path, resume=True)).learn()
    assert list_trained(tmp_path) == [("groupdro", 0)]


def test_fewer_updates_than_there_were_are_refused(toy, tmp_path):
    trainer(toy, tmp_path, "erm").learn()
    before = files(tmp_path)
    for options in (RunOptions(tmp_path), RunOptions(tmp_path, resume=True)):
        with pytest.raises(RunError, match="already trained for 12 updates, and 5 are asked for; choose another --run, or --overwrite"):
            trainer(toy, tmp_path, "erm", options=options, steps=5).learn()
    assert files(tmp_path) == before


def test_a_head_on_another_body_is_refused(toy, tmp_path):
    trainer(toy, tmp_path, "dfr").learn()
    trainer(toy, tmp_path, "erm", options=RunOptions(tmp_path, overwrite=True), steps=13).learn()
    with pytest.raises(RunError, match="begun_from, base differ"):
        trainer(toy, tmp_path, "dfr", steps=13, options=RunOptions(tmp_path, resume=True)).learn()


def test_seconds_hold_what_is_done_between_stages(toy, tmp_path, monkeypatch):
    genuine = dfr.with_features
    monkeypatch.setattr(dfr, "with_features", lambda *given: time.sleep(0.2) or genuine(*given))
    one = trainer(toy, tmp_path, "dfr", steps=2)
    one.learn()
    rows = {row["algorithm"]: row["seconds"] for row in results(tmp_path)}
    logged = MetricsLog.read(one.folder / "metrics.jsonl")[-1]["seconds"]
    assert logged + 0.4 <= rows["dfr"] == one.row["seconds"] < logged + 1.4 and rows["erm"] > 0
    shutil.rmtree(one.folder)
    (one.folder / "earlier").mkdir(parents=True)
    (one.folder / "earlier" / "metrics.jsonl").write_text('{"step": 1, "seconds": 1000}')  # no stage of this one
    again = trainer(toy, tmp_path, "dfr", steps=2)
    again.learn()
    assert again.row["seconds"] < 100


def test_rows_of_two_commands_are_all_there(tmp_path):
    def write(k: int) -> None:
        for seed in range(20):
            record(tmp_path, {"algorithm": f"a{k}", "seed": seed, "steps": 1, "seconds": 1, "rows": 9, "majority": 0.5, "rules": {}})

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results(tmp_path)) == 80


def test_empty_groups_are_named_once(tmp_path, capsys):
    path = tmp_path / "gap.py"
    path.write_text(TOY.replace("torch.where(u[:, 1] < 0.85, shape, 1 - shape)", "torch.where(u[:, 1] < 0.85, shape, 1)"))
    command(str(path), tmp_path / "run", "--algorithm", "groupdro,lisa,reweighting,erm", "--seeds", "1")
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1 and "the train split of Toy has no rows of: shape=square, light=no\n" in told


def test_interrupted_and_resumed_is_uninterrupted(toy, tmp_path, monkeypatch):
    """Of an algorithm with state (q) and noise's place in its stream."""
    for name in ("groupdro", "lisa"):
        whole, calls = trainer(toy, tmp_path / "whole", name).learn().state_dict(), []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("mechanisms.training.loop.agree", lambda v, *_, calls=calls: (v[0], len(calls) > 6 or calls.append(1), v[2]))
            trainer(toy, tmp_path / "parts", name).learn()
        with pytest.raises(RunError, match="already holds a training; --resume continues it"):
            trainer(toy, tmp_path / "parts", name).learn()
        parts = trainer(toy, tmp_path / "parts", name, options=RunOptions(tmp_path / "parts", resume=True)).learn().state_dict()
        assert same(whole, parts), name


def test_jtt_weighs_the_errors_of_a_short_training(toy, tmp_path):
    one, seen = trainer(toy, tmp_path, "jtt"), []
    kept = one.fit
    one.fit = lambda model, stage="", train=None, **changes: seen.append((stage, train, changes)) or kept(model, stage, train, **changes)
    one.learn()
    assert [(stage, changes) for stage, _, changes in seen] == [("identification", {"steps": 3}), ("", {})]
    weight = seen[1][1].attributes["weight"]
    assert weight.mean() == pytest.approx(1) and weight.max() / weight.min() == pytest.approx(20, rel=1e-4)
    assert (one.folder / "identification" / "mechanism.pt").exists()


def test_a_diverged_training_stops_and_keeps_what_was_good(toy, tmp_path):
    with pytest.raises(RunError, match=r"vrex/seed-0: training diverged at step .*Weights of step \d+, .* are in .*mechanism.pt"):
        trainer(toy, tmp_path, "vrex", steps=200, learning_rate=1e15, warmup=100_000_000, validations=200).learn()
    state = load(folder_of(tmp_path, "vrex", 0) / "mechanism.pt", "classifier")
    assert 0 < state["step"] < 150 and all(w.isfinite().all() for w in state["weights"].values())
    assert list_trained(tmp_path) == [] and state["diverged"] >= state["step"]
    with pytest.raises(RunError, match=f"vrex of seed 0 in .* has diverged at step {state['diverged']}; .* lower --learning-rate"):
        load_trained(tmp_path, "vrex", 0, "iid")


def test_a_schedule_runs_and_modes_are_right(toy, tmp_path):
    """Known mistakes of earlier implementations: a rate that never fell, and training in evaluation mode."""
    one = trainer(toy, tmp_path, "erm", network="smallcnn", schedule="step", steps=16, validations=16)
    model = one.build()
    before, modes = model.network.state_dict()["blocks.0.1.running_mean"].clone(), []
    model.network.blocks[0][1].register_forward_hook(lambda module, *_: modes.append(module.training))
    one.fit(model)
    rates = [row["learning_rate"] for row in MetricsLog.read(one.folder / "metrics.jsonl")]
    assert rates[:8] == [1e-3] * 8 and rates[-1] == pytest.approx(1e-5) and rates[9] == pytest.approx(1e-4)
    assert modes.count(True) == 16 and modes.count(False) >= 16 and not torch.equal(before, model.network.blocks[0][1].running_mean)
    assert not model.training


def test_a_full_batch_is_made_once_and_in_order(toy, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Split, "batch", lambda self, index, batch=Split.batch: made.append((self.name, index)) or batch(self, index))
    one = trainer(toy, tmp_path, "irm", batch_size=1000)
    one.learn()
    assert [index for name, index in made if name == "train"] == [slice(None)]


# ---------------------------------------------------------------------------------------------------- stacked seeds
@pytest.mark.parametrize("name, batch_size", [("erm", 32), ("irm", 32), ("irm", 1000), ("vrex", 32), ("fishr", 96), ("coral", 32)])
def test_stacked_seeds_are_seeds_alone(toy, tmp_path, name, batch_size):
    settings = {"batch_size": batch_size, "weight_decay": 0.01, "schedule": "cosine", "l2": 0.01, "steps": 8,
                "settings": ("fishr.memory=0",)}
    alone = [trainer(toy, tmp_path / "alone", name, seed, **settings) for seed in (2, 5, 3)]
    stack = [trainer(toy, tmp_path / "stack", name, seed, **settings) for seed in (2, 5, 3)]
    assert learn_stacked(stack) == [2, 5, 3] and {p.name for p in stack[0].folder.parent.iterdir()} == {"seed-2", "seed-3", "seed-5"}
    for one, other in zip(alone, stack, strict=True):
        one.learn()
        states = [load(t.folder / "mechanism.pt", "classifier") for t in (one, other)]
        torch.testing.assert_close(states[1]["weights"], states[0]["weights"], rtol=1e-4, atol=1e-5)
        assert [s["selected"].keys() for s in states] == [{"iid", "worst-group", "oracle"}] * 2
        assert [r["step"] for r in states[1]["selected"].values()] == [r["step"] for r in states[0]["selected"].values()]
        logs = [MetricsLog.read(t.folder / "metrics.jsonl") for t in (one, other)]
        for ours, theirs in zip(*logs, strict=True):
            assert ours["step"] == theirs["step"] and ours["valid"] == pytest.approx(theirs["valid"], rel=1e-3, abs=1e-5)
            assert ours["train"] == pytest.approx(theirs["train"], rel=1e-3, abs=1e-5)
        assert read_json(one.folder / "config.json") == read_json(other.folder / "config.json")


def test_a_seed_of_a_stack_goes_on_alone(toy, tmp_path):
    learn_stacked([trainer(toy, tmp_path / "stack", "irm", seed) for seed in (0, 1)])
    finished = trainer(toy, tmp_path / "stack", "irm", 1)
    assert same(finished.learn().network.state_dict(), load(finished.folder / "mechanism.pt")["weights"])
    longer = trainer(toy, tmp_path / "stack", "irm", 1, options=RunOptions(tmp_path / "stack", resume=True), steps=20).learn()
    trainer(toy, tmp_path / "alone", "irm", 1).learn()
    expected = trainer(toy, tmp_path / "alone", "irm", 1, options=RunOptions(tmp_path / "alone", resume=True), steps=20).learn()
    torch.testing.assert_close(longer.network.state_dict(), expected.network.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [{"steps": 12}, {"minutes": 0.02}])
@pytest.mark.parametrize("reset", [True, False])
def test_the_optimiser_is_new_where_the_penalty_sets_in(toy, tmp_path, monkeypatch, budget, reset):
    """Before each update: how many updates its moments are of, and whether the penalty has its weight."""
    seen, genuine = [], training.update

    def update(accelerator, model, optimizer, *rest):
        ages = {int(state["step"]) for state in optimizer.state.values()}
        seen.append((max(ages, default=0), model.weight(progress[-1])))
        return genuine(accelerator, model, optimizer, *rest)

    progress, told = [], training.agree
    monkeypatch.setattr(training, "agree", lambda values, *rest: progress.append(values[0]) or told(values, *rest))
    monkeypatch.setattr(training, "update", update)
    trainer(toy, tmp_path, "irm", settings=("anneal=0.5", f"reset={reset}"), **budget).learn()
    light = [weight for _, weight in seen].count(1.0)
    assert 0 < light < len(seen) and (light == 6 or "minutes" in budget)
    assert [age for age, _ in seen] == [*range(light), *range(0 if reset else light, len(seen) - (light if reset else 0))]


def test_a_training_interrupted_about_the_reset_resumes_to_the_same(toy, tmp_path, monkeypatch):
    settings = ("anneal=0.5",)
    trainer(toy, tmp_path / "whole", "irm", settings=settings).learn()
    for stop in (5, 6, 7):  # the penalty sets in before update 6 of 12
        run, calls = tmp_path / f"parts-{stop}", []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "agree", lambda given, *_, n=stop, c=calls: (given[0], len(c) >= n or c.append(1), given[2]))
            trainer(toy, run, "irm", settings=settings).learn()
        trainer(toy, run, "irm", settings=settings, options=RunOptions(run, resume=True)).learn()
        whole, parts = (load(folder_of(r, "irm", 0) / "mechanism.pt")["weights"] for r in (tmp_path / "whole", run))
        assert same(whole, parts)


def test_an_interrupted_stack_is_resumed(toy, tmp_path, monkeypatch):
    learn_stacked([trainer(toy, tmp_path / "whole", "erm", seed) for seed in (0, 1)])
    calls = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mechanisms.training.loop.agree", lambda values, *_: (values[0], len(calls) > 6 or calls.append(1), values[2]))
        learn_stacked([trainer(toy, tmp_path / "parts", "erm", seed) for seed in (0, 1)])
    learn_stacked([trainer(toy, tmp_path / "parts", "erm", seed, RunOptions(tmp_path / "parts", resume=True)) for seed in (0, 1)])
    for seed in (0, 1):
        whole, parts = (load(folder_of(tmp_path / name, "erm", seed) / "mechanism.pt")["weights"] for name in ("whole", "parts"))
        assert same(whole, parts)


def test_what_is_not_stacked(toy, tmp_path):
    assert can_stack(trainer(toy, tmp_path, "irm")) and pays(trainer(toy, tmp_path, "irm"))
    assert not any(can_stack(trainer(toy, tmp_path, name)) for name in ("jtt", "lisa", "groupdro", "dfr", "fishr"))
    assert can_stack(trainer(toy, tmp_path, "fishr", settings=("memory=0",)))  # no state
    assert not can_stack(trainer(toy, tmp_path, "irm", network="smallcnn"))  # batch norm
    assert not can_stack(trainer(toy, tmp_path, "irm", patience=2))
    assert not pays(trainer(toy, tmp_path, "irm", hidden=4000))
    trainer(toy, tmp_path, "irm").learn()
    assert not can_stack(trainer(toy, tmp_path, "irm"))  # what is there already
    assert learn_stacked([trainer(toy, tmp_path, "irm", seed) for seed in (0, 1)]) == []


def test_a_stack_computes_each_seed(toy, tmp_path):
    trainers = [trainer(toy, tmp_path, "irm", seed) for seed in (0, 1)]
    models, batch = [one.build() for one in trainers], trainers[0].train.batch(slice(0, 32))
    stack = Stacked(models, [0, 1]).train()
    terms = stack(batch, None, 1.0)
    for model, seed in zip(models, (0, 1), strict=True):
        for name, term in model.train()(batch, None, 1.0).items():
            torch.testing.assert_close(terms[f"{name}@{seed}"], term, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["loss"], terms["loss@0"] + terms["loss@1"])


# ---------------------------------------------------------------------------------------------------- reading a run
def test_classifiers_that_are_not_there(trained, tmp_path):
    for arguments, message in [(("erm", 7), "has no classifier erm of seed 7; there are: erm .seed 0., .*python -m experiments.train"),
                               (("erm", 0, "best"), "unknown selection rule 'best'; valid are last, iid, worst-group, oracle")]:
        with pytest.raises(RunError, match=message):
            load_trained(trained, *arguments)
    assert list_trained(tmp_path) == []
    with pytest.raises(RunError, match="trained on images of shape .1, 16, 16., not .3, 16, 16."):
        load_trained(trained, "erm", 0).predict(torch.rand(2, 3, 16, 16))


def test_results_are_json_lines_of_finite_numbers(trained):
    for line in (trained / "classifiers" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert all(math.isfinite(value) for found in row["rules"].values() for value in found.values()) and row["seconds"] > 0


def test_budget_flags_are_checked_before_anything_is_written(toy, tmp_path):
    with pytest.raises(UserError, match="erm: --steps -1 must be positive"):
        resolve("erm", open_dataset(toy), replace(FLAGS, steps=-1))


# ---------------------------------------------------------------------------------------------------- names and small groups
def test_names_are_taken_with_underscores_everywhere(toy, tmp_path, capsys):
    command(toy, tmp_path, "--algorithm", "label_smoothing", "--seeds", "1", "--steps", "2", "--set", "label_smoothing.smoothing=0.25")
    assert "label-smoothing: network mlp" in (out := capsys.readouterr().out) and "smoothing 0.25 (flag)" in out
    assert list_trained(tmp_path) == [("label-smoothing", 0)]
    (found,) = load_classifiers(tmp_path, ["label_smoothing"], "last", "cpu")
    assert found.algorithm == "label-smoothing"
    dataset = open_dataset(toy)
    dataset.recipes = {**dataset.recipes, "label_smoothing": {"smoothing": 0.5}}
    assert resolve("label_smoothing", dataset).settings.smoothing == 0.5 == resolve("label-smoothing", dataset).settings.smoothing


def test_groups_that_are_left_out_of_the_worst_are_counted(toy, tmp_path, capsys):
    command(toy, tmp_path, "--algorithm", "erm", "--seeds", "1", "--steps", "2")
    groups = trainer(toy, tmp_path, "erm").valid
    counts = torch.bincount(groups.attributes["group"][groups.attributes["shift"] == 0], minlength=4)
    small = counts[counts < 10]
    assert 0 < len(small) < 4
    row, out = results(tmp_path)[0], capsys.readouterr().out
    assert (row["groups"], row["groups_left_out"], row["rows_left_out"]) == (4, len(small), int(small.sum()))
    assert f"erm: {len(small)} of 4 groups, with {int(small.sum())} of 96 images" in out and "below 10 images" in out
    line = next(csv.DictReader((tmp_path / "classifiers" / "results.tsv").open(), delimiter="\t"))
    assert (line["groups"], line["groups_left_out"], line["rows_left_out"]) == ("4", str(len(small)), str(int(small.sum())))


def test_groups_without_rows_are_left_out_too():
    label, shift = torch.tensor([0] * 20 + [1] * 3), torch.zeros(23, dtype=torch.long)
    split = Split("valid", torch.zeros(23, 1, 2, 2, dtype=torch.uint8), {"group": 2 * label, "shift": shift})
    assert left_out(split, 4) == (3, 3) and worst_group({"group_0": 0.9, "group_2": 0.0}, split) == 0.9
    alone = Split("valid", torch.zeros(3, 1, 2, 2, dtype=torch.uint8), {"group": torch.tensor([1, 1, 0]), "shift": shift[:3]})
    assert left_out(alone, 2) == (1, 1)


# ---------------------------------------------------------------------------------------------------- last layer refitted
def of_features(classes: int, rows: int = 600, seed: int = 0) -> Split:
    """Features that tell the class, and one more that tells a spurious one, which goes with it in nine of ten rows."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (rows,), generator=generator)
    spurious = torch.where(torch.rand(rows, generator=generator) < 0.9, label, torch.randint(classes, (rows,), generator=generator))
    x = torch.randn(rows, 6, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 1.0])
    x[:, 0] += 1.5 * label
    x[:, 1] += 6.0 * spurious
    x[:, 5] = 2.0  # a unit that never changes
    return Split("valid", torch.zeros(rows, 1, 0, 0, dtype=torch.uint8), {
        "features": x, "label": label, "group": classes * label + spurious, "shift": torch.zeros(rows, dtype=torch.long)})


@pytest.mark.parametrize("classes", [2, 3])
def test_dfr_is_the_mean_of_l1_logistic_regressions_on_balanced_subsets(classes):
    """Scikit-learn's own pipelines, on the subsets that were drawn; with the strength given."""
    fitted, judged = of_features(classes), of_features(classes, seed=1)
    model = algorithm("dfr")(build_network("mlp", (1, 4, 4), classes, 6), Sizes(classes, 1, classes**2), DFRSettings(3, 0.7))
    model.refit(fitted, judged, 5)
    x, y, groups = (fitted.attributes[name].numpy() for name in ("features", "label", "group"))
    generator, heads = np.random.default_rng([5, 11]), []
    for _ in range(3):
        rows = dfr.balanced_rows(groups, generator)
        counts = np.bincount(groups[rows], minlength=classes**2)
        assert (counts == np.bincount(groups).min()).all() and len(set(rows)) == len(rows)
        scaler = StandardScaler().fit(x)
        how = {"solver": "liblinear"} if classes == 2 else {"solver": "saga", "tol": 1e-2}
        one = LogisticRegression(l1_ratio=1.0, C=0.7, random_state=5, **how).fit(scaler.transform(x)[rows], y[rows])
        heads.append(one.decision_function(scaler.transform(judged.attributes["features"].numpy())))
    logits = model.network.logits(judged.attributes["features"]).detach().numpy()
    ours = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    assert model.strength == pytest.approx(0.7) and np.ptp(ours) > 0.1
    np.testing.assert_allclose(ours, np.mean(heads, 0), rtol=1e-3, atol=1e-3)
    terms = model.train()({**fitted.attributes}, Noise(0), 1.0)
    terms["loss"].mean().backward()
    assert not model.network.head.weight.grad.any()  # what was fitted stays


def test_dfr_chooses_the_strength_by_the_worst_group_of_the_other_half():
    fitted, judged = of_features(2), of_features(2, seed=1)
    chosen, found = algorithm("dfr")(build_network("mlp", (1, 4, 4), 2, 6), Sizes(2, 1, 4), DFRSettings(1)), {}
    for strength in dfr.STRENGTHS:
        model = algorithm("dfr")(build_network("mlp", (1, 4, 4), 2, 6), Sizes(2, 1, 4), DFRSettings(1, strength)).refit(fitted, judged, 0)
        right = model.network.logits(judged.attributes["features"]).argmax(1) == judged.attributes["label"]
        counts = torch.bincount(judged.attributes["group"])
        found[strength] = min(right[judged.attributes["group"] == g].float().mean().item() for g in range(4) if counts[g] >= 10)
    assert len(set(found.values())) > 1
    assert chosen.refit(fitted, judged, 0).strength == pytest.approx(max(found, key=found.get))


@pytest.mark.parametrize("rows", [1, 2])
def test_dfr_with_next_to_no_validation_rows_is_refused_in_a_line(toy, tmp_path, capsys, rows):
    with pytest.raises(SystemExit) as caught:
        command(toy, tmp_path / "run", "--algorithm", "erm,dfr", "--seeds", "1", "--validation-rows", str(rows))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and f"{rows // 2} of {rows} (seed 0)" in error and "none of the class " in error
    assert not (tmp_path / "run").exists()  # nothing was trained


def test_dfr_tells_its_strength_and_ends_with_what_was_fitted(toy, tmp_path):
    one = trainer(toy, tmp_path, "dfr")
    model = one.learn()
    assert MetricsLog.read(one.folder / "metrics.jsonl")[-1]["train"]["strength"] == pytest.approx(float(model.strength))
    assert any(model.strength == pytest.approx(c) for c in dfr.STRENGTHS) and one.row["steps"] == 1
    kept = load(one.folder / "mechanism.pt", "classifier")["weights"]
    fresh = trainer(toy, tmp_path, "dfr")
    fitted, judged = (dfr.with_features(model, split) for split in dfr.DFR._halves(fresh, fresh.valid))
    assert torch.equal(copy.deepcopy(model).refit(fitted, judged, 0).network.head.weight, kept["head.weight"])

"""From flags, recipes and defaults to a plan: which wins, and what is refused before anything is written."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from datasets.errors import UserError
from datasets.registry import open_dataset
from datasets.schema import SchemaError
from experiments.algorithms.registry import ALGORITHMS
from experiments.networks.config import ClassifierConfig
from experiments.train import main
from experiments.training.field_help import field_help
from experiments.training.options import Options, TrainingFlags
from experiments.training.plan import resolve
from mechanisms.runs.command import run_command
from mechanisms.training.config import TrainingConfig
from tests.errors import naming, says
from tests.experiments.toy import FLAGS, TOY


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
    (["--algorithm", "erm,erm"], "--algorithm erm"), (["--algorithm", "erm,,irm"], "--algorithm 'erm,,irm' 1 2"),
    (["--spurious", "a,a"], "--spurious a"), (["--set", "penalty=1", "--set", "penalty=2"], "--set penalty"),
    (["--hidden", "1000000000"], "--hidden 1000000000"), (["--seeds", "1000000000"], "--seeds 1000000000"),
    (["--set", "irm.penalty=nan", "--algorithm", "irm"], "irm penalty=nan")])
def test_senseless_flags_are_refused_before_anything_is_written(toy, tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        run_command(Options, main, ["--dataset", str(toy), "--run", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2 and says(capsys.readouterr().err, named) and not (tmp_path / "run").exists()


def test_a_recipe_that_sets_what_is_not_there(toy):
    dataset = open_dataset(toy)
    for recipes, message in [({"erm": {"penalty": 1}}, "'erm' penalty"), ({"*": {"rate": 1}}, "'*' rate")]:
        type(dataset).recipes, kept = recipes, type(dataset).recipes
        try:
            with pytest.raises(SchemaError, match=naming(message)):
                resolve("erm", dataset)
        finally:
            type(dataset).recipes = kept


def test_every_setting_has_a_help_text_and_a_name_of_its_own():
    """A recipe names fields of the training, of the network and of the algorithm side by side."""
    others = {f.name for kind in (TrainingConfig, ClassifierConfig) for f in fields(kind)}
    for kind in ALGORITHMS.values():
        texts = field_help(kind.settings)
        assert all(texts.values()) and not others & texts.keys(), kind.name


def test_budget_flags_are_checked_before_anything_is_written(toy, tmp_path):
    with pytest.raises(UserError, match=naming("erm --steps -1")):
        resolve("erm", open_dataset(toy), replace(FLAGS, steps=-1))

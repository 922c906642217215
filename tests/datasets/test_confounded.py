"""Any data set, confounded by selection: the same images and process, other rows."""

from __future__ import annotations

import pytest
import torch

from datasets.registry import open_dataset
from datasets.schema import SchemaError
from datasets.task import task_of
from mechanisms.anticausal.decorrelate import chosen
from tests.errors import naming

DIGITS = "train_digits=600;valid_digits=64;test_digits=32;strength=0"
COLOURS = {"of": "colourmnist", "options": DIGITS, "tie": "colour"}
TINY = "train_digits=96;valid_digits=32;test_digits=32;renderings=1"


def agreement(dataset, split: str) -> float:
    attributes = dataset.split(split).attributes
    return float(((attributes["digit"] >= 5) == (attributes["colour"] >= 5)).double().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_label_and_tied_attribute_go_together_in_training_only(session_cache, seed):
    dataset = open_dataset("confounded", {**COLOURS, "strength": 0.9, "seed": seed})
    assert abs(agreement(dataset.inner, "train") - 0.5) < 0.07
    assert abs(agreement(dataset, "train") - 0.9) < 0.06 and abs(agreement(dataset, "valid") - 0.9) < 0.15
    assert len(dataset.split("test")) == 32 and torch.equal(dataset.split("test").images, dataset.inner.split("test").images)
    assert dataset.graph.fingerprint() == dataset.inner.graph.fingerprint() and dataset.title == "confounded colourmnist"


def test_no_strength_no_selection(session_cache):
    dataset = open_dataset("confounded", {**COLOURS, "strength": 0.5})
    assert torch.equal(dataset.split("train").images, dataset.inner.split("train").images)
    all_agree = open_dataset("confounded", {**COLOURS, "strength": 1})
    assert agreement(all_agree, "train") == 1


def test_rows_keep_their_own_truth_and_subject(session_cache):
    dataset = open_dataset("confounded", {"options": TINY})
    assert dataset.spurious == ("thickness", "intensity") and dataset.label == "digit"
    rows = dataset.split("train")
    assert 30 < len(rows) < 96
    truth = dataset.true_counterfactual("train", torch.tensor([5, 9]), {"thickness": rows.attributes["thickness"][[5, 9]]})
    assert all(torch.equal(truth[name], rows.attributes[name][[5, 9]]) for name in rows.attributes)
    assert torch.equal((truth["image"] * 255).round().to(torch.uint8), rows.images[[5, 9]])
    subjects = dataset.subjects("train")
    assert len(subjects) == len(rows) == len(subjects.unique())
    assert dataset.measure(truth["image"])["thickness"].shape == (2,)


def test_the_shift_is_against_the_class(session_cache):
    dataset = open_dataset("confounded", {"options": TINY})
    attributes, shift = dataset.split("test").attributes, dataset.shifts()["reversed"]
    do = shift(attributes, torch.Generator().manual_seed(0))
    middle = dataset.inner.split("train").attributes["thickness"].median()
    assert torch.equal(do["thickness"] > middle, attributes["digit"] < 5)
    assert torch.isin(do["thickness"], dataset.inner.split("train").attributes["thickness"]).all()
    assert task_of(dataset).classes == 10


def test_the_shift_without_regard_to_the_class(session_cache):
    dataset = open_dataset("confounded", {"options": "train_digits=96;valid_digits=32;test_digits=32;renderings=40"})
    rows = dataset.split("valid").attributes
    drawn = dataset.shifts()["independent"](rows, torch.Generator().manual_seed(0))["thickness"]
    upper = drawn > dataset.inner.split("train").attributes["thickness"].median()
    assert torch.isin(drawn, dataset.inner.split("train").attributes["thickness"]).all()
    for half in (rows["digit"] < 5, rows["digit"] >= 5):
        assert abs(float(upper[half].double().mean()) - 0.5) < 0.1  # 0.95 and 0.05 as observed


def test_rows_that_it_does_not_have(session_cache):
    dataset = open_dataset("confounded", {"options": TINY})
    size = len(dataset.split("train"))
    for row in (-1, size):  # which the other data set has
        with pytest.raises(SchemaError, match=naming(f"train confounded morphomnist {size}")):
            dataset.true_counterfactual("train", torch.tensor([row]), {"thickness": torch.tensor([2.0])})


def test_environments_are_those_of_the_rows(session_cache):
    dataset = open_dataset("confounded", {**COLOURS, "predict": "digit"})
    inner = dataset.inner.environments("train")
    assert torch.equal(dataset.environments("train"), inner[dataset._index["train"]]) and len(inner.unique()) == 2
    assert task_of(dataset).environment_count == 2
    assert open_dataset("confounded", {"options": TINY}).environments("train") is None


def test_images_may_be_read_one_by_one(session_cache):
    dataset = open_dataset("confounded", {"options": TINY})
    inner, index = dataset.inner.split("train"), dataset._index["train"]
    every = torch.arange(len(inner))
    dataset.inner._splits["train"] = type(inner)("train", chosen_lazily(inner, every), inner.attributes)
    rows = dataset.split("train")
    assert not rows.in_memory and torch.equal(rows.batch([3])["image"][0], inner.images[index[3]].float() / 255)


def chosen_lazily(split, index):
    class Lazy:
        def __len__(self) -> int:
            return len(index)

        def __getitem__(self, row: int):
            return chosen(split, index).images[row]

    return Lazy()


@pytest.mark.parametrize(("options", "told"), [
    ({"strength": 0.3}, "strength=0.3"), ({"tie": "weight"}, "tie='weight' thickness"),
    ({"predict": "thickness"}, "predict=thickness"), ({"of": "mnist3"}, "'mnist3'"),
    ({"predict": "digit", "tie": "digit"}, "tie=digit 'digit'"), ({"options": "colour=red"}, "'colour'"),
    ({"of": "morphomnist-confounded", "predict": "label", "tie": "digit"}, "tie=digit 'label'"),
])
def test_bad_input(options, told):
    with pytest.raises(SchemaError, match=naming(told)):
        open_dataset("confounded", options)

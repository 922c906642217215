"""Spurious MNIST: exact counts, the square where it belongs, the two published tests."""

from __future__ import annotations

import pytest
import torch

from datasets import SchemaError, open_dataset
from datasets.task import task_of
from tests.errors import naming


def counts(dataset, split: str = "train") -> list[list[int]]:
    """``[label][square]``: number of images."""
    rows = dataset.split(split).attributes
    return torch.bincount(2 * rows["label"] + rows["square"], minlength=4).view(2, 2).tolist()


@pytest.mark.parametrize("mix", [0.0, 0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("split", ["train", "test"])
def test_shares_are_exact(mix, split):
    dataset = open_dataset("spuriousmnist", {"mix": mix})
    found, rows = counts(dataset, split), dataset.split(split).attributes
    assert torch.equal(rows["label"], (rows["digit"] >= 5).long())
    for label, share in enumerate((1 - mix, mix)):
        assert abs(found[label][1] - share * sum(found[label])) <= 0.5
    assert dataset.environments(split) is None


def test_counts_of_all_of_mnist(shared_data):
    full = open_dataset("spuriousmnist", {"data_dir": shared_data / "mnist"})
    (absent_0, present_0), (absent_1, present_1) = counts(full)
    assert (absent_0 + present_0, absent_1 + present_1) == (30596, 29404)
    assert (absent_0, present_1) == (306, 294) and absent_0 + present_1 == 600
    assert len(full.split("valid")) == len(full.split("test")) == 5000


def test_valid_and_test_are_even_and_odd_rows():
    from datasets.files.idx import load_mnist

    dataset, labels = open_dataset("spuriousmnist"), torch.tensor(load_mnist()["test"][1])
    assert torch.equal(dataset.split("valid").attributes["digit"], labels[::2])
    assert torch.equal(dataset.split("test").attributes["digit"], labels[1::2])


@pytest.mark.parametrize(("corner", "rows", "columns"), [
    ("top-left", slice(0, 6), slice(0, 6)), ("top-right", slice(0, 6), slice(22, 28)),
    ("bottom-left", slice(22, 28), slice(0, 6)), ("bottom-right", slice(22, 28), slice(22, 28))])
def test_square(corner, rows, columns):
    dataset = open_dataset("spuriousmnist", {"corner": corner, "square_size": "6", "colour": "#ff8000", "test_digits": 50})
    grey = torch.tensor(dataset._digits["test"][0]).unsqueeze(1).expand(-1, 3, -1, -1)
    index = torch.arange(50)
    bare = (dataset.true_counterfactual("test", index, {"square": 0})["image"] * 255).round().to(torch.uint8)
    marked = (dataset.true_counterfactual("test", index, {"square": 1})["image"] * 255).round().to(torch.uint8)
    assert torch.equal(bare, grey)
    expected = grey.clone()
    expected[:, :, rows, columns] = torch.tensor([255, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.equal(marked, expected)
    assert not dataset.measure(bare.float() / 255)["square"].any() and dataset.measure(marked.float() / 255)["square"].all()


def test_default_square_is_blue():
    dataset = open_dataset("spuriousmnist", {"test_digits": 20})
    image = dataset.true_counterfactual("test", torch.arange(20), {"square": 1})["image"]
    assert (image[:, :, :4, :4] == torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)).all() and not image[:, :2, 4, :4].any()


def test_published_tests():
    dataset = open_dataset("spuriousmnist")
    rows, generator = dataset.split("test").attributes, torch.Generator()
    raw, malicious = (dataset.shifts()[name](rows, generator)["square"] for name in ("raw", "malicious"))
    assert not raw.any() and torch.equal(malicious, rows["label"]) and malicious is not rows["label"]


def test_square_follows_the_label_by_the_rank_of_the_row():
    dataset = open_dataset("spuriousmnist", {"mix": 0.2})
    index = torch.arange(250)
    seen = dataset.split("test").batch(index)
    ones = dataset.true_counterfactual("test", index, {"label": 1})["square"]
    zeros = dataset.true_counterfactual("test", index, {"label": 0})["square"]
    assert torch.equal(torch.where(seen["label"] == 1, ones, zeros), seen["square"])
    assert (zeros >= ones).all() and (zeros > ones).float().mean() == pytest.approx(0.6, abs=0.02)


def test_groups():
    task = task_of(open_dataset("spuriousmnist", {"mix": 0.01}))
    found = torch.bincount(task.split("train").attributes["group"]).tolist()
    assert dict(zip(task.group_names, found, strict=True)) == {
        "label=0-4, square=absent": 23, "label=0-4, square=present": 2244,
        "label=5-9, square=absent": 2211, "label=5-9, square=present": 22}


@pytest.mark.parametrize(("options", "words"), [
    ({"square_size": 0}, "square_size=0 1 14"), ({"square_size": 15}, "square_size=15"),
    ({"corner": "middle"}, "corner 'middle' top-left"),
    ({"colour": "blau"}, "colour 'blau' red #rrggbb"),
    ({"colour": "#000010"}, "#000010 0x40"), ({"colour": "#12345"}, "colour '#12345'"), ({"mix": 1.5}, "mix=1.5"),
    ({"mix": float("nan")}, "mix=nan"),
])
def test_senseless_options(options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("spuriousmnist", options)

"""Colored MNIST: the law of labels and colours, the images of the paper, the published test distribution."""

from __future__ import annotations

import math

import pytest
import torch

from datasets import SchemaError, open_dataset
from datasets.files.idx import load_mnist
from tests.errors import naming


def within(found: torch.Tensor, probability: float) -> bool:
    """A frequency of 0/1 values is within four standard errors of its probability."""
    return abs(float(found.double().mean()) - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(found)) + 1e-12


@pytest.fixture(scope="module")
def colored(session_cache):
    return open_dataset("coloredmnist")


def test_parts_are_those_of_the_paper_by_shares(colored):
    source = load_mnist()
    images, labels = source["train"]
    assert [len(colored._digits[s][0]) for s in ("train", "valid", "test")] == [3750, 500, 750]
    assert (colored._digits["train"][0] == images[:3750]).all() and (colored._digits["test"][1] == labels[3750:]).all()
    assert (colored._digits["valid"][0] == source["test"][0]).all()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_law(colored, split):
    rows, environment = colored.split(split).attributes, colored.environments(split)
    assert environment.bincount().tolist() == [len(environment) // 2] * 2
    assert within(rows["label"] ^ (rows["digit"] < 5).long(), 0.25)
    for e, flip in enumerate((0.2, 0.1)):
        here = environment == e
        assert within((rows["colour"] ^ rows["label"])[here], flip)


def test_options_set_the_law():
    rows = open_dataset("coloredmnist", {"label_flip": 0, "flip-0": "1", "flip_1": 0.0}).split("train").attributes
    assert torch.equal(rows["label"], (rows["digit"] < 5).long())
    assert torch.equal(rows["colour"] ^ rows["label"], 1 - open_dataset("coloredmnist").environments("train"))


@pytest.mark.parametrize("size", [14, 28])
def test_image_is_the_digit_in_one_of_two_channels(size):
    dataset = open_dataset("coloredmnist", {"size": size})
    rows, grey = dataset.split("test"), torch.tensor(dataset._digits["test"][0])[:, ::28 // size, ::28 // size]
    assert rows.images.shape == (750, 2, size, size)
    for colour in (0, 1):
        here = rows.attributes["colour"] == colour
        assert torch.equal(rows.images[here, colour], grey[here]) and not rows.images[here, 1 - colour].any()


def test_colours_are_flipped_where_the_label_is_set(colored):
    index = torch.arange(300)
    seen = colored.split("test").batch(index)
    truth = colored.true_counterfactual("test", index, {"label": 1})
    assert torch.equal(truth["colour"] ^ truth["label"], seen["colour"] ^ seen["label"])
    both = colored.true_counterfactual("test", index, {"label": 1, "colour": 0})
    assert (both["colour"] == 0).all() and not both["image"][:, 1].any()


def test_published_test_distribution(colored):
    rows = colored.split("test").attributes
    many = {"label": rows["label"].repeat(20)}
    colour = colored.shifts()["e=0.9"](many, torch.Generator().manual_seed(0))["colour"]
    assert within(colour ^ many["label"], 0.9) and colour.dtype == torch.int64


def test_recipes_are_those_of_the_paper(colored):
    from mechanisms.training.config import TrainingConfig
    from mechanisms.training.loop import fall

    assert colored.recipes["irm"]["anneal"] * colored.recipes["*"]["steps"] == pytest.approx(190)
    assert [colored.recipes[name]["penalty"] / colored.recipes["irm"]["penalty"] for name in ("vrex", "fishr")] == [4, 2]
    assert colored.recipes["irm"]["hidden"] == 390 and colored.recipes["*"]["hidden"] == 256
    names = TrainingConfig.__dataclass_fields__
    training = TrainingConfig(**{k: v for k, v in colored.recipes["*"].items() if k in names})
    training.check()
    assert fall(training, 0.99) == 1.0 and training.ema == training.weight_decay == training.warmup == 0


@pytest.mark.parametrize(("options", "words"), [
    ({"size": 20}, "size=20 14 28"), ({"label_flip": 1.2}, "label_flip=1.2"),
    ({"flip_0": -0.1}, "flip_0=-0.1"), ({"flip_1": float("nan")}, "flip_1=nan"),
])
def test_senseless_options(options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("coloredmnist", options)


def test_all_of_mnist(shared_data):
    """The first 50,000 digits in two environments of 25,000; the share of correct guesses by shape and by colour."""
    full = open_dataset("coloredmnist", {"data_dir": shared_data / "mnist"})
    for split, colour_right in (("train", 0.85), ("test", 0.85)):
        rows, ink = full.split(split).attributes, full.split(split).images.float().mean((1, 2, 3))
        here = full.environments(split) == 0
        assert abs(float(ink[here].mean() / ink[~here].mean()) - 1) < 0.02  # by parity .88: two groups of writers take turns
        assert full.environments(split).bincount().tolist() == [len(rows["label"]) // 2] * 2
        assert float((rows["colour"] == rows["label"]).double().mean()) == pytest.approx(colour_right, abs=0.01)
        assert float(((rows["digit"] < 5) == rows["label"].bool()).double().mean()) == pytest.approx(0.75, abs=0.015)

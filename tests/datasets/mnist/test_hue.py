"""Colour-MNIST: how strongly hue and digit are tied, in each environment; hues that can be told apart."""

from __future__ import annotations

import math

import pytest
import torch

from datasets import SchemaError, open_dataset
from datasets.mnist.hue import HUES, PALETTE
from tests.errors import naming


def own_share(dataset, environment: int) -> tuple[float, float]:
    """The share of rows whose colour is their digit's, and its standard error."""
    rows = dataset.split("train").attributes
    own = (rows["colour"] == rows["digit"])[dataset.environments("train") == environment].double()
    return float(own.mean()), math.sqrt(0.25 / len(own))


@pytest.mark.parametrize(("strength", "gap"), [(0.95, 0.05), (0.6, 0.5), (0.0, 0.05), (1.0, 0.0)])
def test_law(strength, gap):
    dataset = open_dataset("colourmnist", {"strength": str(strength), "gap": gap})
    for environment, s in enumerate((strength * (1 + gap), strength * (1 - gap))):
        share, error = own_share(dataset, environment)
        assert abs(share - (s + (1 - s) / 10)) <= 4 * error
    rows = dataset.split("train").attributes
    free = rows["colour"][rows["colour"] != rows["digit"]]
    if strength < 1:
        assert (free.bincount(minlength=10) / len(free) - 0.1).abs().max() < 4 * math.sqrt(0.1 / len(free))


def test_without_strength_nothing_causes_the_colour():
    assert open_dataset("colourmnist", {"strength": 0}).graph["colour"].parents == ()
    assert open_dataset("colourmnist").graph["colour"].parents == ("digit",)


def test_image_is_grey_times_hue_padded():
    dataset = open_dataset("colourmnist", {"test_digits": 40})
    grey, index = torch.tensor(dataset._digits["test"][0]).float() / 255, torch.arange(40)
    for colour in range(10):
        image = dataset.true_counterfactual("test", index, {"colour": colour})["image"]
        assert not image[:, :, :2].any() and not image[..., -2:].any()
        expected = grey.unsqueeze(1) * PALETTE[colour].view(1, 3, 1, 1)
        assert (image[..., 2:-2, 2:-2] - expected).abs().max() <= 0.5 / 255 + 1e-6
        assert (dataset.measure(image)["colour"] == colour).all()


def test_hues_are_apart_and_named():
    angles = torch.nn.functional.normalize(PALETTE, dim=1)
    assert (angles @ angles.T - torch.eye(10)).max() < math.cos(math.radians(10)) and len(HUES) == len(set(HUES)) == 10


def test_shifts():
    dataset = open_dataset("colourmnist")
    rows = {"digit": dataset.split("test").attributes["digit"].repeat(10)}
    free, reversed_ = (dataset.shifts()[name](rows, torch.Generator().manual_seed(0))["colour"] for name in ("independent", "reversed"))
    assert torch.equal(reversed_, 9 - rows["digit"]) and not (reversed_ == rows["digit"]).any()
    joint = torch.bincount(10 * rows["digit"] + free, minlength=100).view(10, 10).double()
    expected = joint.sum(1, keepdim=True) / 10
    assert float(((joint - expected) ** 2 / expected).sum()) < 90 + 4 * math.sqrt(180)  # χ², 90 degrees of freedom


@pytest.mark.parametrize(("options", "words"), [
    ({"strength": 1.1}, "strength=1.1"), ({"strength": -0.1}, "strength=-0.1"),
    ({"strength": float("nan")}, "strength=nan"),
    ({"strength": 0.99}, "gap=0.05 [0, 1] strength·(1 + gap) 1 strength=0.99"),
    ({"gap": -0.1}, "gap=-0.1"),
])
def test_senseless_options(options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("colourmnist", options)

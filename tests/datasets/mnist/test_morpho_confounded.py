"""Confounded Morpho-MNIST: marginals that stay, a tie that is as strong as it says, equations that counterfactuals follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import gamma, kstest

from datasets import SchemaError, open_dataset
from datasets.mnist.morpho_confounded import quantile
from tests.errors import naming

SMALL = {"train_digits": 40, "valid_digits": 8, "test_digits": 24, "renderings": 1}
MEDIAN = 0.5 + gamma.median(10) / 5
MIDDLE = 64 + 191 / (1 + math.exp(-2.15 * (MEDIAN - 2.5)))  # the median of an intensity that is tied


def attributes(**options) -> tuple:
    """Data set, its training labels and sampled attributes in great number, without rendering them."""
    dataset = open_dataset("morphomnist-confounded", {"renderings": 5, **options})
    return dataset, dataset._labels("train"), {n: v.ravel() for n, v in dataset.sample("train", np.random.default_rng(0)).items()}


def test_law_of_thickness():
    share = np.linspace(0.001, 0.999, 99)
    assert np.allclose(gamma.cdf((quantile(share) - 0.5) * 5, 10), share, atol=1e-6)


@pytest.mark.parametrize("tie", ["thickness", "intensity"])
@pytest.mark.parametrize("strength", [0.5, 0.9])
def test_marginals_stay(tie, strength):
    dataset, label, made = attributes(tied=tie, strength=strength)
    weight = np.where(label == 1, 0.5 / label.mean(), 0.5 / (1 - label.mean()))  # as if classes were balanced
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = (made["thickness"] <= quantile(np.array([level]))) * weight
        assert below.mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / len(label)))
    natural = np.random.default_rng(1)
    t = 0.5 + natural.gamma(10, 1 / 5, 200_000)
    i = 64 + 191 / (1 + np.exp(-(2 * (t - 2.5) + 0.5 * natural.standard_normal(200_000))))
    for level in (0.1, 0.5, 0.9):
        assert ((made["intensity"] <= np.quantile(i, level)) * weight).mean() == pytest.approx(level, abs=0.02)


def test_tie_is_as_strong_as_it_says():
    dataset, label, made = attributes(tied="thickness", strength=0.8, gap=0.25)
    agrees = (made["thickness"] > MEDIAN) == (label == 1)
    for environment, strength in enumerate((0.875, 0.725)):
        here = agrees[dataset.environments("train").numpy() == environment]
        assert here.mean() == pytest.approx(strength, abs=4 * 0.5 / math.sqrt(len(here)))
    assert dataset.strengths == pytest.approx((0.875, 0.725))


def test_intensity_tied_leaves_thickness_alone():
    dataset, label, made = attributes(tied="intensity", strength=0.95, gap=0.0)
    assert kstest(made["thickness"][label == 1], made["thickness"][label == 0]).pvalue > 1e-3
    assert abs(np.corrcoef(made["thickness"], made["intensity"])[0, 1]) < 4 / math.sqrt(len(label))
    assert ((made["intensity"] > MIDDLE) == (label == 1)).mean() == pytest.approx(0.95, abs=2 / math.sqrt(len(label)))
    assert dataset.spurious == ("intensity",) and dataset.schema["intensity"].parents == ("label",)


def test_unconfounded():
    for tie, effects in (("thickness", ("thickness", "intensity")), ("intensity", ("intensity",))):
        dataset, label, made = attributes(tied=tie, strength=0.5)
        assert dataset.strengths == (0.5, 0.5) and dataset.spurious == effects and dataset.schema[tie].parents == ()
        for name in effects:
            assert kstest(made[name][label == 1], made[name][label == 0]).pvalue > 1e-3


def test_graph_when_thickness_is_tied():
    dataset = open_dataset("morphomnist-confounded", SMALL)
    assert dataset.spurious == ("thickness", "intensity")
    assert dataset.schema["thickness"].parents == ("label",) and dataset.schema["intensity"].parents == ("thickness",)


def test_counterfactual_attributes_follow_the_equations(session_cache):
    dataset, index = open_dataset("morphomnist-confounded", SMALL), torch.arange(24)
    seen, arrays = dataset.split("test").batch(index), dataset._arrays("test")
    truth = dataset.true_counterfactual("test", index, {"label": 1 - seen["label"]})
    share = lambda t: gamma.cdf((t.double().numpy() - 0.5) * 5, 10)  # noqa: E731
    assert np.allclose(abs(share(truth["thickness"]) - share(seen["thickness"])), 0.5, atol=1e-5)  # the same place in the other half
    expected = 64 + 191 / (1 + np.exp(-(2 * (truth["thickness"].double().numpy() - 2.5) + 0.5 * arrays["noise"])))
    assert np.allclose(truth["intensity"].double(), expected, rtol=1e-6)
    held = dataset.true_counterfactual("test", index, {"label": 1 - seen["label"], "thickness": seen["thickness"]})
    assert torch.equal(held["intensity"], seen["intensity"]) and torch.equal(held["image"], seen["image"])


def test_images_are_those_of_morpho_mnist(session_cache):
    """The same digit at the same thickness and intensity is the same image, whatever the story of its attributes."""
    plain, tied_ = open_dataset("morphomnist", SMALL), open_dataset("morphomnist-confounded", SMALL)
    index = torch.arange(12)
    do = {"thickness": torch.linspace(1.5, 4, 12), "intensity": torch.linspace(90, 240, 12)}
    assert torch.equal(plain.true_counterfactual("test", index, do)["image"], tied_.true_counterfactual("test", index, do)["image"])


@pytest.mark.parametrize("tie", ["thickness", "intensity"])
def test_shifts(tie):
    dataset = open_dataset("morphomnist-confounded", {**SMALL, "tied": tie, "strength": 0.9})
    rows = {"label": torch.arange(8000) % 2}
    for name, strength in (("independent", 0.5), ("reversed", 0.1)):
        value = dataset.shifts()[name](rows, torch.Generator().manual_seed(1))[tie]
        upper = dataset.schema[tie].check(value) > (MEDIAN if tie == "thickness" else MIDDLE)
        assert (upper.long() == rows["label"]).double().mean() == pytest.approx(strength, abs=2 / math.sqrt(8000))


@pytest.mark.parametrize(("options", "words"), [
    ({"tied": "slant"}, "tied='slant' thickness intensity"), ({"strength": 0.4}, "strength=0.4 [0.5, 1]"),
    ({"strength": 1.2}, "strength=1.2"), ({"strength": float("nan")}, "strength=nan"),
    ({"strength": 1.0}, "gap=0.125 [0, 1] strength=1.0"),
    ({"gap": -1}, "gap=-1"), ({"renderings": 0}, "renderings=0 1"), ({"workers": -1}, "workers=-1 0"),
])
def test_senseless_options(options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("morphomnist-confounded", options)


def test_options_do_not_share_cached_images(monkeypatch):
    asked = []

    def build_anew(name, parameters, build):
        asked.append((name, *parameters.values()))
        return build()

    monkeypatch.setattr("datasets.mnist.morpho.cached", build_anew)
    for options in ({}, {"tied": "intensity"}, {"strength": 0.6}, {"gap": 0.0}, {"seed": 1}, {"renderings": 2}):
        open_dataset("morphomnist-confounded", {**SMALL, **options}).split("valid")
    assert len(set(asked)) == len(asked) == 6

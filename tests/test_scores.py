"""Scores against the truth at known points: an oracle errs by nothing, copying errs by exactly the floor it is given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datasets.base import CausalDataset
from datasets.schema import SchemaError, Variable
from dscm import DSCM
from dscm.model import Counterfactual
from dscm.scores import (
    attribute_error,
    draw_interventions,
    format_table,
    free_energy,
    image_error,
    markdown,
    mean_and_error,
    score_truth,
)
from mechanisms.runs import dataset_of

COUNT = 32


class Shades(CausalDataset):
    """shade → tint; both → image: a uniform square whose truth is known, also under do(tint), a class."""

    variables = (Variable("shade", "interval", low=0, high=255), Variable("tint", "categorical", ("shade",), classes=3),
                 Variable("image", "image", ("shade", "tint"), shape=(1, 12, 12)))
    true_images_under = ("shade", "tint")

    @staticmethod
    def make(shade: Tensor, tint: Tensor) -> Tensor:
        return ((shade + 10 * tint) / 255).clamp(0, 1).view(-1, 1, 1, 1).expand(-1, 1, 12, 12)

    def load(self, split: str) -> dict[str, Tensor]:
        shade = torch.linspace(20, 200, 40).round()
        tint = (torch.arange(40) % 3 + (shade > 100)) % 3
        return {"shade": shade, "tint": tint, "image": self.make(shade, tint)}

    def true_counterfactual(self, split: str, index: Tensor, do: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = self.split(split).batch(index)
        shade, tint = do.get("shade", rows["shade"]), do.get("tint")
        if tint is None:
            tint = (index % 3 + (shade > 100)) % 3
        return {"shade": shade, "tint": tint, "image": self.make(shade, tint)}


class Stub:
    """Answers like a DSCM; what it says is given."""

    device = torch.device("cpu")

    def __init__(self, dataset: CausalDataset, say: Callable[[dict, dict], dict]) -> None:
        self.graph, self.say = dataset.graph, say

    def counterfactual(self, observed, do, draws=None, temperature=1.0, generator=None) -> Counterfactual:
        said = dict(self.say(observed, do))
        image = said.pop("image")
        return Counterfactual({v.name: said[v.name] for v in self.graph.attributes}, image, {})

    def log_prob(self, observed, generator=None) -> dict[str, Tensor]:
        return {"image": -2.0 * torch.ones(len(observed["image"])) * observed["image"][0].numel()}


def oracle(dataset: CausalDataset) -> Stub:
    return Stub(dataset, lambda observed, do: dataset.true_counterfactual("test", torch.arange(len(observed["image"])), do))


def copier(dataset: CausalDataset) -> Stub:
    return Stub(dataset, lambda observed, do: {**observed, **do})


@pytest.fixture(scope="module")
def digits(tiny_run: Path) -> CausalDataset:
    return dataset_of(tiny_run)


@pytest.fixture(scope="module")
def scored(tiny_run: Path, digits: CausalDataset) -> list[dict]:
    return score_truth(DSCM.load(tiny_run), digits, count=COUNT)


# -------------------------------------------------------------------------------------------------------- interventions
def test_interventions_are_a_function_of_the_seed(digits):
    first, again, other = (draw_interventions(digits, "test", 16, seed) for seed in (0, 0, 1))
    assert [i.name for i in first] == ["do(thickness)", "do(intensity)"]
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.values, b.values) and not torch.equal(a.values, c.values)
        assert torch.equal(a.index, torch.arange(16)) and a.values.shape == (16,)
        assert torch.isin(a.values, digits.split("train").attributes[a.variable]).all()


def test_drawn_classes_differ_from_the_observed_ones():
    dataset = Shades()
    drawn = {i.variable: i.values for i in draw_interventions(dataset, "test", 40)}
    assert drawn["tint"].dtype == torch.int64 and set(drawn["tint"].tolist()) == {0, 1, 2}
    assert (drawn["tint"] != dataset.split("test").attributes["tint"]).all()


@pytest.mark.parametrize("count", [0, 1, 33])
def test_refuses_a_count_that_the_split_has_not(digits, count):
    with pytest.raises(SchemaError, match="32 rows; take 2..32"):
        draw_interventions(digits, "test", count)


def test_nothing_is_scored_where_nothing_is_known():
    class Unknown(Shades):
        true_images_under = ()

    assert draw_interventions(Unknown(), "test", 8) == []
    assert score_truth(copier(Unknown()), Unknown(), count=8) == []
    assert format_table([]) == "No true counterfactuals are known for this data set."


# -------------------------------------------------------------------------------------------------------- known points
@pytest.mark.parametrize("make", ["digits", "shades"])
def test_the_oracle_errs_by_nothing(make, digits):
    dataset = digits if make == "digits" else Shades()
    for row in score_truth(oracle(dataset), dataset, count=COUNT):
        assert row["l1"] == row["l1_true_parents"] == 0 < row["l1_identity"]
        assert math.isinf(row["psnr"]) and row["ssim"] == pytest.approx(1, abs=1e-5) and row["ssim_identity"] < 0.999
        assert all(errors["error"] == 0 for errors in row["attributes"].values())
        assert all(errors["error"] == errors["truth"] for errors in row["measured"].values())
        assert row["free_energy"] == pytest.approx(2) and row["free_energy_se"] == pytest.approx(0)


@pytest.mark.parametrize("make", ["digits", "shades"])
def test_copying_errs_by_exactly_the_floor(make, digits):
    dataset = digits if make == "digits" else Shades()
    for row in score_truth(copier(dataset), dataset, count=COUNT):
        for key in ("l1", "psnr", "ssim"):
            assert row[key] == row[f"{key}_identity"]
        for errors in (*row["attributes"].values(), *row["measured"].values()):
            assert errors["error"] == errors["identity"]


def test_a_known_offset_is_measured_in_grey_levels():
    dataset = Shades()

    def darker(observed: dict, do: dict) -> dict:
        truth = dataset.true_counterfactual("test", torch.arange(len(observed["image"])), do)
        return {**truth, "image": truth["image"] - 5 / 255, "tint": (truth["tint"] + 1) % 3}

    rows = {row["variable"]: row for row in score_truth(Stub(dataset, darker), dataset, count=COUNT)}
    assert rows["shade"]["l1"] == pytest.approx(5, abs=1e-4) and rows["shade"]["l1_se"] == pytest.approx(0, abs=1e-5)
    assert rows["shade"]["psnr"] == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert rows["shade"]["attributes"]["tint"]["error"] == 1  # every class is wrong
    assert rows["tint"]["attributes"] == {}  # it has no descendants


def test_a_padded_border_dilutes_by_its_share(digits):
    whole, inner = (score_truth(copier(digits), digits, count=COUNT, border=border) for border in (0, 2))
    for a, b in zip(whole, inner, strict=True):
        assert b["l1"] == pytest.approx(a["l1"] * 32**2 / 28**2)
    with pytest.raises(SchemaError, match="border=16"):
        score_truth(copier(digits), digits, count=COUNT, border=16)


def test_distances():
    black, white = torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4)
    assert image_error(black, white).tolist() == [255, 255, 255]
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, 1.0)
    age, sex = Variable("age", "positive"), Variable("sex", "binary")
    assert attribute_error(age, torch.tensor([3.0]), torch.tensor([5.0])).tolist() == [2.0]
    assert attribute_error(sex, torch.tensor([1, 0]), torch.tensor([1, 1])).tolist() == [0, 1]


# -------------------------------------------------------------------------------------------------------- a real model
def test_scores_of_a_model_repeat_and_are_plain(tiny_run, digits, scored):
    assert scored == score_truth(DSCM.load(tiny_run), digits, count=COUNT) == json.loads(json.dumps(scored))
    thickness, intensity = scored
    assert set(thickness["attributes"]) == {"intensity"} and intensity["attributes"] == {}
    assert set(thickness["measured"]) == {"thickness", "intensity"}
    # do(intensity) leaves the SCM nothing to err about; do(thickness) does not
    assert intensity["l1"] == intensity["l1_true_parents"] and thickness["l1"] != thickness["l1_true_parents"]
    assert 0 < thickness["l1"] < 255 and math.isfinite(thickness["free_energy"])


def test_temperature_and_draws_are_used_and_recorded(tiny_run, digits, scored):
    model = DSCM.load(tiny_run)
    for given in ({"temperature": 0.0}, {"draws": 2}):
        row = score_truth(model, digits, count=COUNT, **given)[0]
        assert row["l1"] != scored[0]["l1"] and row["l1_identity"] == scored[0]["l1_identity"]
        assert given.items() <= row.items()


def test_free_energy_is_the_models_bound(tiny_run, digits, scored):
    model, observed = DSCM.load(tiny_run), digits.split("test").batch(slice(0, COUNT))
    bound = -model.log_prob(observed, torch.Generator().manual_seed(0))["image"] / 1024
    mean, error = free_energy(model, observed)
    assert mean == pytest.approx(float(bound.mean())) and error == pytest.approx(float(bound.std()) / COUNT**0.5)
    assert mean == scored[0]["free_energy"] and error == scored[0]["free_energy_se"]
    chunked, _ = free_energy(model, observed, batch_size=10)
    assert chunked == pytest.approx(mean, rel=0.05)


# -------------------------------------------------------------------------------------------------------- tables
def test_the_table_shows_every_figure_beside_its_floor(scored):
    text = format_table(scored)
    for row in scored:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['intervention']}"))
        for key in ("l1", "l1_true_parents", "l1_identity"):
            assert f"{row[key]:.2f} ± {row[f'{key}_se']:.2f}" in line
        assert f"{row['psnr']:.2f} ({row['psnr_identity']:.2f})" in line
    assert "32 images of morphomnist's test split" in text and "residual temperature 1," in text and "nats/dim" in text
    tables = [block.splitlines() for block in text.split("\n\n")[1:]]
    assert len(tables) == 2
    for table in tables:
        assert len({len(line) for line in table}) == 1 and len({line.count("|") for line in table}) == 1


def test_markdown_aligns():
    expected = ["| a         | long |", "| --------- | ---- |", "| wide cell | x    |"]
    assert markdown(("a", "long"), [("wide cell", "x")]).splitlines() == expected

"""Intervals, coverage and CRPS, against NumPy's quantiles, brute force and closed forms."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torchmetrics.functional.regression import continuous_ranked_probability_score

from datasets.schema import SchemaError
from dscm.metrics.coverage import HALF_LEVEL, Ensemble, expected_coverage, per_image, positions
from dscm.metrics.truth import changed_pixels, image_error
from mechanisms.training.noise import seeded
from tests.dscm.metrics.levels import levels
from tests.errors import naming


@pytest.mark.parametrize("method", ["linear", "weibull"])
@pytest.mark.parametrize("draws, level", [(2, 0.5), (5, 0.9), (32, 0.9), (33, 0.5)])
def test_intervals_are_numpys_quantiles(method, draws, level):
    values = torch.randn(draws, 4, 3, generator=seeded(draws))
    expected = np.quantile(values.double().numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0, method=method)
    for end, right in zip(Ensemble(values).interval(level, method), expected, strict=True):
        assert end.numpy() == pytest.approx(right, abs=1e-6)


def test_expected_coverage_of_finitely_many_draws():
    assert expected_coverage(32) == pytest.approx(0.9 * 31 / 33) and expected_coverage(10**6) == pytest.approx(0.9, abs=1e-5)
    assert expected_coverage(32, method="weibull") == pytest.approx(0.9) and expected_coverage(10, method="weibull") < 0.9
    for method in ("linear", "weibull"):
        uniform = torch.rand(33, 200_000, generator=seeded(1))
        covered = Ensemble(uniform[1:]).coverage(uniform[0], method=method).mean()
        assert float(covered) == pytest.approx(expected_coverage(32, method=method), abs=0.003)  # 4 standard errors
        low, high = positions(32, 0.9, method)
        bounds = ((math.floor(high) - math.ceil(low)) / 33 - 0.003, (math.ceil(high) - math.floor(low)) / 33 + 0.003)
        for draw in (torch.randn, lambda *shape, generator: torch.rand(*shape, generator=generator).log()):
            skewed = draw(33, 200_000, generator=seeded(2))
            assert bounds[0] <= float(Ensemble(skewed[1:]).coverage(skewed[0], method=method).mean()) <= bounds[1]


def test_calibration_at_its_known_points():
    truth = levels(4, 1, 6, 6)
    exact = Ensemble(truth.expand(8, 4, 1, 6, 6))
    assert exact.coverage(truth).tolist() == [1] * 4 and exact.width().tolist() == [0] * 4 and exact.crps(truth).tolist() == [0] * 4
    off = Ensemble((truth + 3 / 255).expand(8, 4, 1, 6, 6))
    assert not off.coverage(truth, tolerance=HALF_LEVEL).any()
    assert (255 * off.crps(truth)).tolist() == pytest.approx([3] * 4, rel=1e-4)  # no spread: the absolute error
    vast = Ensemble(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1, 1).expand(2, 4, 1, 6, 6))
    assert vast.coverage(truth).tolist() == [1] * 4 and vast.width().tolist() == pytest.approx([16.2] * 4)
    constant = Ensemble(torch.full((8, 4, 1, 6, 6), 0.5))
    assert torch.allclose(255 * constant.crps(truth), image_error(torch.full_like(truth, 0.5), truth))


def test_black_background_is_covered_to_half_a_grey_level():
    draws = 1e-6 + 1e-7 * torch.rand(32, 3, 1, 4, 4, generator=seeded(0))  # black to within rounding, never quite
    truth = torch.zeros(3, 1, 4, 4)
    assert not Ensemble(draws).coverage(truth).any()
    assert Ensemble(draws).coverage(truth, tolerance=HALF_LEVEL).tolist() == [1] * 3
    assert not Ensemble(draws).coverage(truth + 1 / 255, tolerance=HALF_LEVEL).any()


def test_coverage_of_changed_pixels_leaves_out_images_without_any(pair):
    observed, truth = pair
    truth = torch.cat([truth[:4], observed[4:]])
    where = changed_pixels(observed, truth)
    identity = Ensemble(observed.expand(4, *observed.shape))
    assert identity.coverage(truth, where=where).tolist() == [0] * 4 and (identity.coverage(truth) >= 0.5).all()
    assert torch.allclose(identity.crps(truth, where) * where[:4].flatten(1).float().mean(1) * 255, image_error(observed, truth)[:4])
    assert identity.width(where=where).shape == (4,) and per_image(truth, torch.zeros_like(where)).shape == (0,)


@pytest.mark.parametrize("draws", [2, 3, 8])
def test_crps_is_the_brute_force_double_sum(draws):
    values, target = torch.randn(draws, 30, generator=seeded(draws)), torch.randn(30, generator=seeded(99))
    for column, (y, score) in enumerate(zip(target.tolist(), Ensemble(values).crps(target).tolist(), strict=True)):
        x = values[:, column].tolist()
        spread = sum(abs(a - b) for a, b in combinations(x, 2)) / (draws * (draws - 1))
        assert score == pytest.approx(sum(abs(a - y) for a in x) / draws - spread, abs=1e-5)
    # torchmetrics divides the pairs by K² instead of K(K − 1)
    unfair = float(continuous_ranked_probability_score(values.T, target))
    error = (values - target).abs().mean()
    assert float(error - (error - Ensemble(values).crps(target).mean()) * (draws - 1) / draws) == pytest.approx(unfair, abs=1e-5)


@pytest.mark.parametrize("draws", [4, 1000])
def test_crps_of_a_gaussian_whatever_the_number_of_draws(draws):
    y, sigma = 0.7, 2.0
    values = sigma * torch.randn(draws, 800_000 // draws, generator=seeded(0))
    z = y / sigma
    density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    expected = sigma * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))
    assert float(Ensemble(values).crps(torch.full((values.shape[1],), y)).mean()) == pytest.approx(expected, abs=0.01)


def test_crps_prefers_the_draws_that_are_right():
    truth = torch.randn(4000, generator=seeded(1))
    draws = torch.randn(16, 4000, generator=seeded(2))
    right, narrow, wide, shifted = (float(Ensemble(x).crps(truth).mean()) for x in (draws, 0.2 * draws, 4 * draws, draws + 1))
    assert right < min(narrow, wide, shifted)


def test_an_ensemble_is_a_set(pair):
    draws = torch.randn(6, 3, 2, 4, 4, generator=seeded(0))
    target, order = torch.randn(3, 2, 4, 4, generator=seeded(1)), torch.randperm(6, generator=seeded(2))
    kept = draws.clone()
    for figure in (lambda e: e.coverage(target), lambda e: e.width(), lambda e: e.crps(target)):
        assert figure(Ensemble(draws)).shape == (3,) and torch.equal(figure(Ensemble(draws)), figure(Ensemble(draws[order])))
    assert torch.equal(draws, kept)


def test_calibration_refuses_what_it_cannot_answer():
    with pytest.raises(SchemaError, match=naming("(1, 3) (K, B, …) 2")):
        Ensemble(torch.zeros(1, 3))
    for level in (0, 1, 90):
        with pytest.raises(SchemaError, match=naming(f"level={level}")):
            Ensemble(torch.zeros(4, 3)).width(level)
    with pytest.raises(SchemaError, match=naming("'median' linear weibull")):
        expected_coverage(4, method="median")

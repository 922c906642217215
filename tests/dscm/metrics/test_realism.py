"""Fréchet distance and its real-against-real floor, against closed forms and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from datasets.schema import SchemaError
from dscm.metrics.realism import frechet_distance, real_floor
from mechanisms.training.noise import seeded
from tests.dscm.metrics.levels import levels
from tests.errors import naming


def features(rows: int, width: int, seed: int = 0) -> Tensor:
    mixing = torch.randn(width, width, generator=seeded(7)) / width**0.5
    return torch.randn(rows, width, generator=seeded(seed)) @ mixing


def with_moments(rows: int, mean: Tensor, deviations: Tensor, seed: int) -> Tensor:
    """Features whose sample mean and (diagonal) covariance are exactly these."""
    raw = torch.randn(rows, len(mean), generator=seeded(seed), dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(raw.T)), raw.T, upper=False).T
    return white * deviations + mean


def test_frechet_distance_of_gaussians_with_known_moments():
    means, deviations = torch.randn(2, 6, generator=seeded(0)).double(), torch.rand(2, 6, generator=seeded(1)).double() + 0.5
    one, two = (with_moments(50, means[k], deviations[k], k) for k in range(2))
    expected = float((means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum())
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("width", [1, 3, 16])
def test_frechet_distance_agrees_with_the_matrix_square_root(width):
    one, two = features(100, width, 1), 0.7 * features(80, width, 2) + 0.3
    a, b = (np.atleast_2d(np.cov(x.double().numpy(), rowvar=False)) for x in (one, two))
    root = np.atleast_2d(sqrtm(a @ b)).real
    expected = float((one.double().mean(0) - two.double().mean(0)).square().sum()) + np.trace(a + b - 2 * root)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_agrees_with_torchmetrics():
    image = pytest.importorskip("torchmetrics.image.fid")

    class Mean(torch.nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.double().mean((2, 3)) / 255

    reference = image.FrechetInceptionDistance(feature=Mean())
    real, other = ((255 * levels(40, 3, 4, 4, seed=k)).byte() for k in range(2))
    reference.update(real, real=True)
    reference.update(other, real=False)
    assert frechet_distance(Mean()(other), Mean()(real)) == pytest.approx(float(reference.compute()), rel=1e-3)


def test_frechet_distance_at_its_known_points():
    one, two = features(100, 8, 1), features(100, 8, 2)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9) and frechet_distance(one, one + 2) == pytest.approx(32, rel=1e-5)
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=seeded(3)))[0]
    assert frechet_distance(one @ rotation + 1, two @ rotation + 1) == pytest.approx(frechet_distance(one, two), rel=1e-4)
    constant = torch.ones(100, 8)  # the crowd of one image: all of the other's variance is missing
    expected = float((two.double().mean(0) - 1).square().sum() + torch.cov(two.double().T).trace())
    assert frechet_distance(constant, two) == pytest.approx(expected, rel=1e-6)


def test_the_real_floor_is_the_bias_of_its_number_of_images():
    real = features(2000, 8)
    floors = [real_floor(real, count, seeded(0)) for count in (50, 200, 1000)]
    assert floors[0] > 2 * floors[1] > 4 * floors[2] > 0
    assert real_floor(real, 50, seeded(0)) == floors[0] != real_floor(real, 50, seeded(1))
    fresh = np.mean([frechet_distance(features(200, 8, seed), real[:200]) for seed in range(1, 6)])
    assert fresh == pytest.approx(floors[1], rel=0.5)


def test_too_few_images_for_a_frechet_distance():
    with pytest.raises(SchemaError, match=naming("8 16 15")):
        frechet_distance(features(15, 8), features(100, 8))
    with pytest.raises(SchemaError, match=naming("8 16 9")):
        frechet_distance(features(100, 8), features(9, 8))
    with pytest.raises(SchemaError, match=naming("60 120 100")):
        real_floor(features(100, 8), 60, seeded(0))

"""Errors to the true counterfactual, at their known points and against loops and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from datasets.schema import SchemaError
from dscm.metrics.truth import changed_pixels, image_error, inner, psnr, psnr_per_image, ssim
from tests.dscm.metrics.levels import levels
from tests.errors import naming


def test_truth_at_its_known_points(pair):
    observed, truth = pair
    assert image_error(truth, truth).tolist() == [0] * 6 and math.isinf(psnr(truth, truth))
    assert ssim(truth, truth).tolist() == pytest.approx([1] * 6, abs=1e-12)
    assert psnr_per_image(truth, truth).tolist() == pytest.approx([20 * math.log10(255 * math.sqrt(12))] * 6)
    grey = torch.full_like(truth, 0.5)
    for guess in (observed, grey):
        assert (image_error(guess, truth) > 0).all() and (ssim(guess, truth) < 1).all() and psnr(guess, truth) < 30
    assert image_error(grey, torch.zeros_like(grey)).tolist() == [127.5] * 6


def test_truth_against_plain_loops(pair):
    guess, truth = pair
    for i in range(6):
        differences = [abs(float(a) - float(b)) for a, b in zip(guess[i].flatten(), truth[i].flatten(), strict=True)]
        squares = sum(d * d for d in differences) / len(differences)
        assert float(image_error(guess, truth)[i]) == pytest.approx(255 * sum(differences) / len(differences), rel=1e-5)
        assert float(psnr_per_image(guess, truth)[i]) == pytest.approx(-10 * math.log10(squares), rel=1e-5)
    assert psnr(guess, truth) == pytest.approx(-10 * math.log10(float((guess - truth).square().mean())), rel=1e-5)
    assert psnr(guess[:1], truth[:1]) == pytest.approx(float(psnr_per_image(guess[:1], truth[:1])), rel=1e-5)
    assert ssim(guess[:1], truth[:1]).shape == (1,) and torch.equal(ssim(guess, truth), ssim(truth, guess))


@pytest.mark.parametrize("shape", [(4, 1, 32, 32), (2, 3, 9, 14), (1, 1, 6, 40)])
def test_ssim_is_torchmetrics(shape):
    one, two = levels(*shape), levels(*shape, seed=1)
    for other in (two, 0.5 * one, torch.where(two > 0.5, one, two), torch.zeros_like(one)):
        expected = structural_similarity_index_measure(one.double(), other.double(), data_range=1.0, reduction="none")
        assert ssim(one, other).tolist() == pytest.approx(expected.reshape(-1).tolist(), abs=1e-9)
    with pytest.raises(SchemaError, match=naming("SSIM 6", tuple(one.shape[-2:-1]) + (5,))):
        ssim(one[..., :5], two[..., :5])


def test_inner_and_changed_pixels(pair):
    observed, truth = pair
    assert torch.equal(inner(truth, 0), truth) and torch.equal(inner(truth, 3), truth[..., 3:13, 3:13])
    one, two = observed.clamp(0, 0.9) + 1 / 255, observed.clamp(0, 0.9) + 2 / 255
    base = observed.clamp(0, 0.9)
    assert not changed_pixels(base, one).any() and changed_pixels(base, two).all()
    assert not changed_pixels(observed, truth)[..., 8:, :].any()

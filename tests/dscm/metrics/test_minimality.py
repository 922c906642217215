"""Minimality: CLD and misplaced change, at their known points and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datasets.schema import SchemaError
from dscm.metrics.minimality import excess, latent_divergence, misplaced_change, same_value
from mechanisms.training.noise import seeded
from tests.dscm.metrics.levels import levels
from tests.errors import naming

IDENTITY_CLD = math.log(0.8 + 0.2 * math.e)


def plain_cld(x: Tensor, x_star: Tensor, reference: Tensor, like: Tensor, like_star: Tensor) -> float:
    step = float((x - x_star).abs().sum())
    own = [float((x - r).abs().sum()) for r, yes in zip(reference, like, strict=True) if yes]
    other = [float((x - r).abs().sum()) for r, yes in zip(reference, like_star, strict=True) if yes]
    nearer, farther = sum(d <= step for d in other) / len(other), sum(d >= step for d in own) / len(own)
    return math.log(0.8 * math.exp(nearer) + 0.2 * math.exp(farther))


@pytest.mark.parametrize("seed", range(4))
def test_cld_agrees_with_a_plain_loop(seed):
    x, x_star, reference = (torch.randn(rows, 5, generator=seeded(seed, rows)) for rows in (7, 8, 40))
    x_star = x_star[:7]
    classes = torch.randint(0, 3, (40,), generator=seeded(seed))
    like, like_star = same_value(torch.zeros(7), classes, True), same_value(torch.tensor([1, 2, 1, 2, 1, 2, 1]), classes, True)
    expected = [plain_cld(*row, reference, a, b) for *row, a, b in zip(x, x_star, like, like_star, strict=False)]
    assert latent_divergence(x, x_star, reference, like, like_star).tolist() == pytest.approx(expected, abs=1e-6)


def test_cld_at_its_known_points():
    x, reference = torch.randn(6, 4, generator=seeded(0)), torch.randn(50, 4, generator=seeded(1))
    like, like_star = torch.arange(50).expand(6, 50) < 25, torch.arange(50).expand(6, 50) >= 25
    assert latent_divergence(x, x, reference, like, like_star).tolist() == pytest.approx([IDENTITY_CLD] * 6)
    assert pytest.approx(0.2954, abs=5e-5) == IDENTITY_CLD
    far = latent_divergence(x, x + 1000, reference, like, like_star)  # a constant image far from all others
    assert far.tolist() == pytest.approx([math.log(0.8 * math.e + 0.2)] * 6)
    reference[:25], reference[25:] = x[0] + 0.001, x[0] + 100  # farther than every image of x's value, nearer than any of x*'s
    assert float(latent_divergence(x[:1], x[:1] + 1, reference, like[:1], like_star[:1])) == pytest.approx(0)


def test_cld_has_no_unit_and_names_what_it_lacks():
    x, x_star, reference = (torch.randn(rows, 4, generator=seeded(rows)) for rows in (6, 7, 50))
    like, like_star = torch.arange(50).expand(6, 50) < 25, torch.arange(50).expand(6, 50) >= 25
    score = latent_divergence(x, x_star[:6], reference, like, like_star)
    assert torch.equal(score, latent_divergence(4 * x, 4 * x_star[:6], 4 * reference, like, like_star))
    with pytest.raises(SchemaError, match=naming("0 50")):
        latent_divergence(x, x_star[:6], reference, like, torch.zeros_like(like))


def test_continuous_values_are_matched_by_bins_of_equal_number():
    reference = torch.randn(1000, generator=seeded(0)).exp()
    values = torch.cat([reference[:20], torch.tensor([-5.0, 1e6])])
    like = same_value(values, reference, False)
    assert like.shape == (22, 1000) and like.sum(1).sub(100).abs().max() <= 1 and like[torch.arange(20), torch.arange(20)].all()
    order = reference.argsort()
    for row in like[:, order].long():  # neighbours in value
        assert row.diff().abs().sum() <= 2
    ties = torch.tensor([0.0] * 7 + [10.0] * 5)
    assert same_value(torch.tensor([-1.0, 0.0, 3.0, 10.0, 11.0]), ties, False).sum(1).tolist() == [7, 7, 5, 5, 5]


def test_change_at_its_known_points(pair):
    observed, truth = pair
    assert excess(observed, observed, truth).tolist() == excess(truth, observed, truth).tolist() == [0] * 6
    assert misplaced_change(truth, observed, truth).tolist() == [0] * 6
    assert misplaced_change(observed, observed, truth).tolist() == [1] * 6
    grey = torch.full_like(truth, 0.5)
    assert (excess(grey, observed, truth) > 0).all() and (misplaced_change(grey, observed, truth) > 0.3).all()
    opposite = observed - (truth - observed)
    assert misplaced_change(opposite, observed, truth).tolist() == [1] * 6 and excess(opposite, observed, truth).tolist() == [0] * 6


def test_too_little_too_much_and_change_elsewhere_are_all_misplaced():
    observed, truth = torch.full((1, 1, 4, 4), 0.4), torch.full((1, 1, 4, 4), 0.4)
    truth[..., 0, :] = 0.6
    for share, expected in ((0.5, 0.5), (0.75, 0.25), (2.0, 0.5)):
        assert float(misplaced_change(observed + share * (truth - observed), observed, truth)) == pytest.approx(expected, abs=1e-5)
    elsewhere = truth.clone()
    elsewhere[..., 3, 3] += 0.2  # a fifth of all change
    assert float(misplaced_change(elsewhere, observed, truth)) == pytest.approx(0.2, abs=1e-5)
    assert float(excess(elsewhere, observed, truth)) == pytest.approx(0.2 * 255 / 16, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_change_against_plain_loops(seed):
    observed, images, truth = (levels(3, 1, 5, 5, seed=10 * seed + k) for k in range(3))
    truth = torch.where(torch.rand(truth.shape, generator=seeded(seed)) < 0.5, observed, truth)
    for i in range(3):
        beyond = shared = total = 0.0
        for x, x_star, true in zip(observed[i].flatten().tolist(), images[i].flatten().tolist(), truth[i].flatten().tolist(), strict=True):
            change, wanted = x_star - x, true - x
            beyond += abs(change) if abs(wanted) < 1.5 / 255 else 0
            shared += min(abs(change), abs(wanted)) if change * wanted > 0 else 0
            total += max(abs(change), abs(wanted))
        assert float(excess(images, observed, truth)[i]) == pytest.approx(255 * beyond / 25, rel=1e-5)
        assert float(misplaced_change(images, observed, truth)[i]) == pytest.approx(1 - shared / total, rel=1e-5)


def test_images_whose_truth_stays_are_left_out_of_misplaced_change(pair):
    observed, truth = pair
    some = torch.where(torch.tensor([True, False, True, False, True, True]).view(-1, 1, 1, 1), truth, observed)
    assert misplaced_change(levels(6, 2, 16, 16, seed=5), observed, some).shape == (4,)
    assert misplaced_change(truth, observed, observed).shape == (0,)

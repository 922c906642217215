"""Metrics at their known points: copying x, the true counterfactual, a constant image; and against closed forms and plain loops."""

from __future__ import annotations

import json
import math
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.regression import continuous_ranked_probability_score

from datasets.schema import SchemaError, Variable
from dscm.metrics import METRICS, Score, mean_and_error, summarise
from dscm.metrics.commutativity import commutativity
from dscm.metrics.composition import composition
from dscm.metrics.coverage import HALF_LEVEL, Ensemble, expected_coverage, per_image, positions
from dscm.metrics.likelihood import bits_per_dimension
from dscm.metrics.minimality import excess, latent_divergence, misplaced_change, same_value
from dscm.metrics.realism import frechet_distance, real_floor
from dscm.metrics.reversibility import reversibility
from dscm.metrics.truth import attribute_error, changed_pixels, image_error, inner, psnr, psnr_per_image, ssim
from mechanisms.anticausal.class_scores import class_scores
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
IDENTITY_CLD = math.log(0.8 + 0.2 * math.e)


def levels(*shape: int, seed: int = 0) -> Tensor:
    """Images of whole grey levels."""
    return torch.randint(0, 256, shape, generator=seeded(seed)).float() / 255


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Observed images and their true counterfactuals, which differ in the upper half, by 2 grey levels or more."""
    observed, other = levels(6, 2, 16, 16), levels(6, 2, 16, 16, seed=1)
    other[..., 8:, :] = observed[..., 8:, :]
    return observed, torch.where((other - observed).abs() > 1.5 / 255, other, observed)


# ---------------------------------------------------------------------------------------------------- error to the truth
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
    with pytest.raises(SchemaError, match="at least 6 pixels on each side, got"):
        ssim(one[..., :5], two[..., :5])


def test_inner_and_changed_pixels(pair):
    observed, truth = pair
    assert torch.equal(inner(truth, 0), truth) and torch.equal(inner(truth, 3), truth[..., 3:13, 3:13])
    one, two = observed.clamp(0, 0.9) + 1 / 255, observed.clamp(0, 0.9) + 2 / 255
    base = observed.clamp(0, 0.9)
    assert not changed_pixels(base, one).any() and changed_pixels(base, two).all()
    assert not changed_pixels(observed, truth)[..., 8:, :].any()


# ---------------------------------------------------------------------------------------------------- cycles
def test_cycles_of_the_identity_and_of_an_exact_inverse_are_nothing(pair):
    observed, _ = pair
    assert {n: error.tolist() for n, error in composition(observed, lambda x: x).items()} == {n: [0] * 6 for n in (1, 2, 10)}
    there_and_back = reversibility(observed, lambda x: 1 - x.flip(-1), lambda x: (1 - x).flip(-1))
    assert list(there_and_back) == [2, 10] and all(float(error.max()) < 1e-4 for error in there_and_back.values())


def test_cycles_of_a_constant_and_of_a_drift(pair):
    observed, _ = pair
    grey = composition(observed, lambda x: torch.full_like(x, 0.5))
    assert all(torch.equal(error, image_error(torch.full_like(observed, 0.5), observed)) for error in grey.values())
    drift = composition(torch.zeros(3, 1, 4, 4), lambda x: x + 2 / 255)
    assert {n: error.tolist() for n, error in drift.items()} == {n: pytest.approx([2 * n] * 3) for n in (1, 2, 10)}
    wander = reversibility(torch.zeros(3, 1, 4, 4), lambda x: x + 3 / 255, lambda x: x - 2 / 255, steps=(2, 4, 10))
    assert {n: error.tolist() for n, error in wander.items()} == {2: pytest.approx([1] * 3), 4: pytest.approx([2] * 3),
                                                                 10: pytest.approx([5] * 3)}


def test_each_cycle_is_computed_once_and_in_order(pair):
    observed, _ = pair
    calls = []

    def note(name: str):
        return lambda x: (calls.append(name), x)[1]

    composition(observed, note("f"), cycles=(10, 1, 2))
    assert calls == ["f"] * 10
    calls.clear()
    reversibility(observed, note("f"), note("b"))
    assert calls == ["f", "b"] * 5


def test_refuses_cycles_that_are_none(pair):
    for cycles in ((), (0, 1), (-1,)):
        with pytest.raises(SchemaError, match="1 or more"):
            composition(pair[0], lambda x: x, cycles)
    for steps in ((), (1,), (2, 3), (0,)):
        with pytest.raises(SchemaError, match="round trip is 2 steps"):
            reversibility(pair[0], lambda x: x, lambda x: x, steps)


def test_commutativity(pair):
    observed, truth = pair
    assert all(not error.any() for error in commutativity(truth, truth, truth))
    orders, first, second = commutativity(observed, truth, truth)
    assert torch.equal(orders, first) and torch.equal(orders, image_error(observed, truth)) and not second.any()
    swapped = commutativity(truth, observed, truth)
    assert torch.equal(swapped.orders, orders) and torch.equal(swapped.second, first)


# ---------------------------------------------------------------------------------------------------- effectiveness
@pytest.mark.parametrize("classes", [2, 5])
def test_class_scores_agree_with_scikit_learn(classes):
    for seed in range(5):
        target = torch.randint(0, classes, (80,), generator=seeded(seed))
        probabilities = torch.softmax(torch.randn(80, classes, generator=seeded(seed, 1)) + torch.eye(classes)[target], 1)
        scores = class_scores(probabilities, target)
        assert scores.absent == () and scores.correct.mean() == (probabilities.argmax(1) == target).float().mean()
        assert scores.f1 == pytest.approx(f1_score(target, probabilities.argmax(1), average="macro"), abs=1e-6)
        areas = [roc_auc_score(target == k, probabilities[:, k]) for k in range(classes)]
        assert scores.auroc == pytest.approx(np.mean(areas), abs=1e-6)


def test_class_scores_at_their_known_points():
    target = torch.arange(12) % 3
    assert class_scores(torch.eye(3)[target], target)[1:] == (1.0, 1.0, ())
    wrong = class_scores(torch.eye(3)[(target + 1) % 3], target)
    assert not wrong.correct.any() and wrong.f1 == 0 and wrong.auroc < 0.5
    constant = class_scores(torch.tensor([[0.6, 0.3, 0.1]]).expand(12, 3), target)
    assert constant.correct.mean() == pytest.approx(1 / 3) and constant.auroc == pytest.approx(0.5) and constant.f1 == pytest.approx(1 / 6)


def test_classes_that_do_not_occur_have_no_vote_and_are_named():
    target = torch.tensor([0, 2, 0, 2, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert class_scores(torch.eye(4)[target], target)[1:] == (1.0, 1.0, (1, 3))
        alone = class_scores(torch.eye(4)[torch.tensor([1, 1, 0])], torch.tensor([1, 1, 1]))
    assert alone.auroc is None and alone.absent == (0, 2, 3) and alone.f1 == pytest.approx(0.8)  # precision 1, recall 2/3


@pytest.mark.parametrize("target, message", [([0, 1, 3], "class 3 is none of the 3"), ([0, -1, 0], "class -1"), ([0, 1], "expected")])
def test_class_scores_refuse_what_does_not_fit(target, message):
    with pytest.raises(SchemaError, match=message):
        class_scores(torch.eye(3), torch.tensor(target))


def test_readings_are_scored_in_physical_units():
    age, sex = Variable("age", "positive"), Variable("sex", "binary")
    assert attribute_error(age, torch.tensor([3.0, 1.0]), torch.tensor([5.0, 1.0])).tolist() == [2.0, 0.0]
    assert attribute_error(sex, torch.tensor([1, 0]), torch.tensor([1, 1])).tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------------- minimality
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
    with pytest.raises(SchemaError, match="image 0: none of the 50 reference images has its counterfactual value"):
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


# ---------------------------------------------------------------------------------------------------- realism
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
    with pytest.raises(SchemaError, match="8 features needs at least 16 images, got 15 counterfactual ones"):
        frechet_distance(features(15, 8), features(100, 8))
    with pytest.raises(SchemaError, match="got 9 real ones"):
        frechet_distance(features(100, 8), features(9, 8))
    with pytest.raises(SchemaError, match="at 60 images needs 120 real ones, got 100"):
        real_floor(features(100, 8), 60, seeded(0))


def test_bits_per_dimension():
    uniform = torch.full((3,), 48 * math.log(256))  # 256 grey levels, equally likely
    assert bits_per_dimension(uniform, 48).tolist() == pytest.approx([8] * 3)


# ---------------------------------------------------------------------------------------------------- calibration
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
    with pytest.raises(SchemaError, match=r"shape \(1, 3\): calibration needs \(K, B, …\) with at least 2 draws"):
        Ensemble(torch.zeros(1, 3))
    for level in (0, 1, 90):
        with pytest.raises(SchemaError, match=f"level={level}"):
            Ensemble(torch.zeros(4, 3)).width(level)
    with pytest.raises(SchemaError, match="'median'; valid are linear, weibull"):
        expected_coverage(4, method="median")


# ---------------------------------------------------------------------------------------------------- scores
SCORE = Score("composition_l1", 1.5, 0.1, 100, "grey levels", settings={"temperature": 0.1, "cycles": 10, "effect": "total"},
              floors={"identity": 0.0})


def test_a_score_survives_strict_json():
    for score in (SCORE, Score("truth_psnr", math.inf, None, 3, "dB", "higher", "do(age)", "age", floors={"truth": math.inf})):
        text = json.dumps(score.to_dict(), allow_nan=False)
        assert Score.from_dict(json.loads(text)) == score
    assert SCORE.title == "composition_l1 (temperature 0.1, cycles 10, effect total)"
    assert Score("truth_attribute", 1, None, 2, intervention="do(t)", variable="i").title == "truth_attribute of i under do(t)"


@pytest.mark.parametrize("change, message", [
    ({"value": "high"}, "value='high'"), ({"value": None}, "value=None"), ({"value": True}, "value=True"), ({"count": 1.5}, "count=1.5"),
    ({"floors": {"truth": "x"}}, "floors="), ({"settings": [1]}, "settings="), ({"extra": 1}, "unknown key 'extra'"),
    ({"count": None}, "count=None"), ({"value": float("nan")}, "value=nan"), ({"unit": 3}, "unit=3"),
])
def test_a_damaged_score_is_refused_by_name(change, message):
    with pytest.raises(RunError, match=f"run/metrics.json: not a score .*{message}"):
        Score.from_dict({**SCORE.to_dict(), **change}, "run/metrics.json")
    with pytest.raises(RunError, match="no key 'metric'"):
        Score.from_dict({key: value for key, value in SCORE.to_dict().items() if key != "metric"})
    with pytest.raises(RunError, match="an object with keys, got 3"):
        Score.from_dict(3)


@pytest.mark.parametrize("change, message", [
    ({"value": math.nan}, "value is not a number"), ({"error": math.nan}, "error is not a number"),
    ({"floors": {"truth": math.nan}}, "the floor truth is not a number"), ({"count": 0}, "count=0"),
    ({"floors": {"ground": 1.0}}, "unknown floor ground; valid are identity, truth, real"), ({"better": "up"}, "better='up'"),
])
def test_what_is_no_figure_is_no_score(change, message):
    with pytest.raises(RunError, match=message):
        Score(**{**{"metric": "truth_l1", "value": 1.0, "error": None, "count": 2}, **change})


def test_summarise_takes_means_with_their_errors():
    floors = {"identity": torch.tensor([4.0, 6.0]), "truth": 0}
    score = summarise("truth_l1", torch.tensor([1.0, 3.0]), intervention="do(age)", floors=floors)
    assert score == Score("truth_l1", 2.0, 1.0, 2, "grey levels", "lower", "do(age)", floors={"identity": 5.0, "truth": 0.0})
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, 1.0)
    assert summarise("truth_l1", torch.tensor([1.0])).error is None
    coverage = summarise("coverage_attribute", 0.8, count=7, variable="age", unit="years", better="0.5", settings={"level": 0.5})
    assert (coverage.error, coverage.count, coverage.unit, coverage.better) == (None, 7, "years", "0.5")
    for given, message in (({"metric": "l1", "values": 1.0}, "unknown metric 'l1'; valid are truth_l1,"),
                           ({"metric": "truth_l1", "values": 1.0}, "give count"),
                           ({"metric": "minimality_misplaced", "values": torch.zeros(0)}, "no image that it is about"),
                           ({"metric": "truth_l1", "values": torch.tensor([1.0, math.nan])}, "NaN in the model's images")):
        with pytest.raises(RunError, match=message):
            summarise(**given)


def test_every_metric_is_described_once_here_and_in_the_docs():
    text = DOCS.read_text(encoding="utf-8")
    for name, metric in METRICS.items():
        assert name == metric.name and metric.meaning and metric.trap and f"`{name}`" in text
        assert metric.better in ("lower", "higher") or 0 < float(metric.better) < 1

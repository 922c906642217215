"""The laws of pixel likelihoods and read-outs: both families, grey and colour, against closed forms and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

from datasets.errors import UserError
from mechanisms.image.config import ImageConfig
from mechanisms.image.likelihood import ChannelAutoregression, DiscretizedGaussian, IndependentPixels, PixelLikelihood
from mechanisms.image.logistic import BACKGROUND, BREADTH, LogisticMixture
from mechanisms.image.readout import BilinearReadout, MixtureReadout, make_readout
from mechanisms.training.noise import Noise
from tests.errors import naming

LEVELS = torch.arange(256.0) / 255 * 2 - 1
QUARTER_LEVEL = 0.5 / 255  # on the [-1, 1] scale
Family = Callable[..., IndependentPixels]


def gaussian(shape: tuple[int, ...], log_scale: float, dtype: torch.dtype = torch.float32, spread: float = 0.8) -> DiscretizedGaussian:
    g = torch.Generator().manual_seed(0)
    loc, scale = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    return DiscretizedGaussian(spread * loc, log_scale + 0.3 * scale)


def mixture(shape: tuple[int, ...], log_scale: float, dtype: torch.dtype = torch.float32, spread: float = 0.8) -> LogisticMixture:
    g = torch.Generator().manual_seed(0)
    logits, locs, scales = (torch.randn(4, *shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    return LogisticMixture(logits, spread * locs, log_scale + 0.3 * scales)


def coefficients(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    rows, channels, *size = shape
    g = torch.Generator().manual_seed(1)
    return torch.tanh(torch.randn(rows, channels * (channels - 1) // 2, *size, generator=g, dtype=torch.float64)).to(dtype)


def likelihood(family: Family, shape: tuple[int, ...], log_scale: float = -2.0, dtype: torch.dtype = torch.float32) -> PixelLikelihood:
    pixels = family(shape, log_scale, dtype=dtype)
    return ChannelAutoregression(pixels, coefficients(shape, dtype=dtype)) if shape[1] > 1 else pixels


def pictures(shape: tuple[int, ...]) -> Tensor:
    """Grey levels on [-1, 1], a third of them black and a third white."""
    return torch.randint(-255, 511, shape, generator=torch.Generator().manual_seed(2)).clamp(0, 255) / 255 * 2 - 1


families = pytest.mark.parametrize("family", [gaussian, mixture])
scales = pytest.mark.parametrize("log_scale", [-12.0, -7.0, -5.0, -2.0, 1.0, 5.0])
channels = pytest.mark.parametrize("shape", [(3, 1, 6, 6), (3, 3, 6, 6), (2, 2, 5, 4)], ids=["grey", "rgb", "two"])


# ---------------------------------------------------------------------------------------------------- densities
@families
@scales
def test_masses_of_all_grey_levels_sum_to_one(family, log_scale):
    """Whatever the other pixels are: of every channel, given the earlier ones."""
    shape = (256, 3, 4, 4)
    for c in range(3):
        p, x = likelihood(family, (1, 3, 4, 4), log_scale), pictures((1, 3, 4, 4)).repeat(256, 1, 1, 1)
        x[:, c] = LEVELS.view(-1, 1, 1)
        total = p.log_prob(x)[:, c].exp().sum(0)
        assert x.shape == shape and (total - 1).abs().max() < (1e-3 if family is gaussian else 1e-5)


@families
def test_joint_mass_of_all_colours_is_one(family):
    """Two channels and all pairs of grey levels: the autoregression is a density of the whole pixel."""
    first, second = torch.meshgrid(LEVELS, LEVELS, indexing="ij")
    x = torch.stack([first.flatten(), second.flatten()], 1)[:, :, None, None]
    joint = likelihood(family, (1, 2, 1, 1), -0.5).log_prob(x).sum(1).exp()
    assert joint.sum().item() == pytest.approx(1, abs=1e-3)
    table = joint.view(256, 256)
    assert (table - table.sum(1, keepdim=True) * table.sum(0, keepdim=True)).abs().max() > 1e-5  # channels are not independent


@pytest.mark.parametrize("scale", [0.004, 0.05, 0.4, 2.0])
def test_gaussian_agrees_with_scipy(scale):
    loc, x = 0.1, LEVELS.double().numpy()
    mass = np.diff(stats.norm.cdf(np.r_[-np.inf, (x[:-1] + x[1:]) / 2, np.inf], loc, scale))
    ours = DiscretizedGaussian(torch.full((256,), loc), torch.full((256,), math.log(scale))).log_prob(LEVELS).exp()
    np.testing.assert_allclose(ours.numpy(), mass, atol=2e-6, rtol=1e-3)


def exact_gaussian(x: float, loc: float, log_scale: float) -> mpmath.mpf:
    """The log mass to 60 digits, of the bin between the middles of grey levels, edge bins with their tails."""
    with mpmath.workdps(60):
        scale = mpmath.exp(mpmath.mpf(log_scale))
        half, root = mpmath.mpf(1 / 255), mpmath.sqrt(2)
        below, above = ((mpmath.mpf(x) - mpmath.mpf(loc) + side * half) / scale / root for side in (-1, 1))
        if x < -1 + 1 / 255:
            return mpmath.log(mpmath.erfc(-above) / 2)
        if x > 1 - 1 / 255:
            return mpmath.log(mpmath.erfc(below) / 2)
        if below > 0:
            return mpmath.log((mpmath.erfc(below) - mpmath.erfc(above)) / 2)
        return mpmath.log((mpmath.erfc(-above) - mpmath.erfc(-below)) / 2)


TAILS = [(x, loc, s) for x in (-1.0, float(LEVELS[1]), float(LEVELS[100]), float(LEVELS[254]), 1.0)
         for loc in (-8.0, -1.001, -0.21, float(LEVELS[100]), -0.2157, 0.3, 0.9999, 1.0, 1.05, 8.0)
         for s in (-8.99, -7.0, -6.3, -5.5, -4.0, -2.5, -1.0, 1.0, 5.0)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-5), (torch.float64, 1e-9)])
def test_gaussian_is_exact_in_every_tail(dtype, tolerance):
    """Against 60 digits: no leap where a bin is wider than σ, and down to −z²/2 of 40,000 standard deviations."""
    x, loc, log_scale = torch.tensor(TAILS, dtype=dtype).unbind(1)
    exact = torch.tensor([float(exact_gaussian(*row)) for row in zip(x.tolist(), loc.tolist(), log_scale.tolist(), strict=True)],
                         dtype=torch.float64)
    assert exact.min() < -1e8
    torch.testing.assert_close(DiscretizedGaussian(loc, log_scale).log_prob(x).double(), exact, rtol=tolerance, atol=tolerance)


def test_gaussian_does_not_leap():
    """Along any path of μ the log mass bends steadily: the mid-point rule in its stead leapt by 26 nats at σ = e^−7."""
    for log_scale in (-9.0, -7.0, -6.0, -5.5, -4.0, -2.8, -2.6):
        loc = torch.linspace(0.0, 0.5, 20_001, dtype=torch.float64)
        told = DiscretizedGaussian(loc, torch.full_like(loc, log_scale)).log_prob(torch.full_like(loc, float(LEVELS[128])))
        far = loc > 0.01
        bends = told.diff().diff()[far[2:]]
        assert (told.diff()[far[1:]] < 0).all() and (bends.abs() < 2 * (0.5 / 20_000 / math.exp(log_scale)) ** 2).all()


def test_gaussian_gradients_are_those_of_sixty_digits():
    """In float32, everywhere; the loss that is given to bfloat16 parameters or under autocast is the same."""
    parameters = torch.tensor(TAILS, dtype=torch.float32).unbind(1)
    loc, log_scale = (v.clone().requires_grad_() for v in parameters[1:])
    gradients = torch.autograd.grad(DiscretizedGaussian(loc, log_scale).log_prob(parameters[0]).sum(), (loc, log_scale))
    for k, row in enumerate(zip(*(v.tolist() for v in parameters), strict=True)):
        bend = 1.0
        for place, gradient in enumerate(gradients, 1):
            with mpmath.workdps(60):
                step = mpmath.mpf(10) ** -15
                sides = [exact_gaussian(*(v + sign * step if i == place else mpmath.mpf(v) for i, v in enumerate(row))) for sign in (-1, 1)]
                exact = float((sides[1] - sides[0]) / (2 * step))
            if place == 1:  # beyond 20 standard deviations the whole gradient is scaled down, so that no pixel outweighs a batch
                bend = min(1.0, 20 / max(abs(exact) * math.exp(row[2]), 1e-9))
            assert gradient[k].item() == pytest.approx(bend * exact, rel=2e-3, abs=2e-4), (row, place)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = torch.autograd.grad(DiscretizedGaussian(loc, log_scale).log_prob(parameters[0]).sum(), (loc, log_scale))
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    halves = [v.bfloat16().requires_grad_() for v in parameters[1:]]
    wide = [v.detach().float().requires_grad_() for v in halves]
    told = [torch.autograd.grad(DiscretizedGaussian(*v).log_prob(parameters[0]).sum(), v) for v in (halves, wide)]
    for half, whole in zip(*told, strict=True):
        torch.testing.assert_close(half.float(), whole, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -5.5, -4.0, -2.0, 0.0, 3.0])
def test_gaussian_masses_sum_to_one_at_any_scale(log_scale):
    for loc in (-3.0, -1.0, -0.2, 0.11, 1.0, 1.7):
        p = DiscretizedGaussian(torch.full((256,), loc), torch.full((256,), log_scale))
        assert p.log_prob(LEVELS).double().exp().sum().item() == pytest.approx(1, abs=2e-5)


def test_mixture_is_exact_and_its_gradients_are_those_of_double_precision():
    """Over the same places and scales: the background bounds it from below, and no component's mass leaps."""
    x, loc, log_scale = torch.tensor(TAILS, dtype=torch.float32).unbind(1)
    told = []
    for dtype in (torch.float32, torch.float64):
        values = [v.to(dtype).requires_grad_() for v in (torch.stack([loc, 0.5 * loc]), torch.stack([log_scale, log_scale + 1]))]
        logits = torch.tensor([0.3, -0.3], dtype=dtype)[:, None].expand(2, len(x))
        mass = LogisticMixture(logits, *values).log_prob(x.to(dtype))
        told.append((mass.detach().double(), *(g.double() for g in torch.autograd.grad(mass.sum(), values))))
    for single, double_precision in zip(*told, strict=True):
        torch.testing.assert_close(single, double_precision, rtol=2e-3, atol=2e-3)
    with mpmath.workdps(60):
        weights = [(1 - BACKGROUND) / (1 + mpmath.exp(-side * mpmath.mpf("0.6"))) for side in (1, -1)]
        for row, (at, m, s) in enumerate(TAILS):
            parts = [(weights[0], mpmath.mpf(m), mpmath.exp(s)), (weights[1], m / mpmath.mpf(2), mpmath.exp(s + 1)),
                     (mpmath.mpf(BACKGROUND), mpmath.mpf(0), mpmath.mpf(BREADTH))]
            ends = [-mpmath.inf if at == -1 else at - mpmath.mpf(1) / 255, mpmath.inf if at == 1 else at + mpmath.mpf(1) / 255]
            mass = sum(w * (1 / (1 + mpmath.exp(-(ends[1] - m) / s)) - 1 / (1 + mpmath.exp(-(ends[0] - m) / s))) for w, m, s in parts)
            assert told[0][0][row].item() == pytest.approx(float(mpmath.log(mass)), rel=1e-4, abs=1e-3), (at, m, s)


def scipy_cdf(p: LogisticMixture, x: np.ndarray, tail: str = "cdf") -> np.ndarray:
    """F of a mixture with one pixel, in double precision."""
    weights, locs, scales = (v.double().flatten(1)[:, 0].numpy() for v in (p.logits.softmax(0), p.locs, p.log_scales.exp()))
    parts = zip((1 - BACKGROUND) * weights, locs, scales, strict=True)
    return sum(w * getattr(stats.logistic, tail)(x, m, s) for w, m, s in [*parts, (BACKGROUND, 0, BREADTH)])


@scales
def test_mixture_agrees_with_scipy(log_scale):
    p, x = mixture((1, 1, 1, 1), log_scale), LEVELS.double().numpy()
    middles = (x[:-1] + x[1:]) / 2
    lower, upper = scipy_cdf(p, middles), scipy_cdf(p, middles, "sf")
    # a difference of the tail that is the smaller one does not cancel
    mass = np.r_[lower[0], np.where(middles[1:] < 0, np.diff(lower), -np.diff(upper)), upper[-1]]
    ours = p.log_prob(LEVELS.view(-1, 1, 1, 1)).flatten().numpy()
    np.testing.assert_allclose(ours, np.log(mass), atol=1e-3)
    assert ours.min() > -14
    interior = LEVELS[1:-1]
    u = p.standardize(interior.view(-1, 1, 1, 1)).flatten().numpy()
    exact = np.log(scipy_cdf(p, interior.double().numpy())) - np.log(scipy_cdf(p, interior.double().numpy(), "sf"))
    np.testing.assert_allclose(u, exact, atol=1e-3, rtol=1e-4)


def test_mixture_inverts_like_scipy():
    p = mixture((1, 1, 1, 1), -2.0)
    for u in (-6.0, -1.5, 0.0, 0.3, 4.0):
        exact = optimize.brentq(lambda x, q=stats.logistic.cdf(u): scipy_cdf(p, x) - q, -50, 50, xtol=1e-12)
        assert p.place(torch.full((1, 1, 1, 1), u)).item() == pytest.approx(np.clip(exact, -1, 1), abs=1e-5)


def test_one_component_is_a_logistic():
    """Up to its background: the mass is the logistic's, and the noise is its standardised distance."""
    one = LogisticMixture(*(torch.full((1, 256, 1, 1, 1), v) for v in (0.7, 0.2, -3.0)))
    x, s = LEVELS.double().numpy(), math.exp(-3)
    mass = np.diff(stats.logistic.cdf(np.r_[-np.inf, (x[:-1] + x[1:]) / 2, np.inf], 0.2, s))
    np.testing.assert_allclose(one.log_prob(LEVELS.view(-1, 1, 1, 1)).exp().flatten(), mass, atol=2e-4)
    near = torch.linspace(0.1, 0.3, 256).view(-1, 1, 1, 1)
    torch.testing.assert_close(one.standardize(near), (near - 0.2) / s, atol=0.02, rtol=0)
    assert torch.equal(one.loc.unique(), torch.tensor([0.2]))


def test_mean_is_that_of_the_components():
    p = mixture((1, 1, 1, 1), -1.0, dtype=torch.float64)
    grid = np.linspace(-40, 40, 200_001)
    mean = 40 - integrate.trapezoid(scipy_cdf(p, grid), grid)  # ∫ x dF by parts, on [-40, 40]
    assert p.loc.item() * (1 - BACKGROUND) == pytest.approx(mean, abs=1e-4)


# ---------------------------------------------------------------------------------------------------- noise
@families
@channels
@scales
def test_place_inverts_standardize(family, shape, log_scale):
    p, x = likelihood(family, shape, log_scale), pictures(shape)
    u = p.standardize(x)
    assert u.isfinite().all() and (p.place(u) - x).abs().max() < QUARTER_LEVEL / 2
    assert (u[x == -1] <= 0).all() and (u[x == 1] >= 0).all()


@families
def test_censored_noise_is_the_most_probable(family):
    """Where the median is black already, a black pixel says nothing: its noise is 0; otherwise it just reaches black."""
    p = likelihood(family, (4, 1, 8, 8), -1.0)
    median = p.place(torch.zeros(4, 1, 8, 8))
    for value in (-1.0, 1.0):
        u = p.standardize(torch.full_like(median, value))
        there = median == value
        assert there.any() and not there.all() and (u[there] == 0).all() and (u[~there] * value > 0).all()
        inside = p.place(u - 0.01 * value)[~there]
        assert (inside.abs() < 1).all()


def test_every_level_between_two_spikes_is_told_apart():
    """The background at work: without it F is flat there in float32, and the pixels could not be found again."""
    for weight in (-6.0, 0.0, 6.0):
        logits, locs = torch.tensor([weight, 0.0]), torch.tensor([-1.02, 0.8])
        p = LogisticMixture(*(v.view(2, 1, 1, 1, 1).expand(2, 256, 1, 1, 1) for v in (logits, locs, torch.tensor([-9.0, -9.0]))))
        x = LEVELS.view(-1, 1, 1, 1)
        u = p.standardize(x)
        assert (p.place(u) - x).abs().max() < QUARTER_LEVEL and u.abs().max() < 9.1
        assert (u.flatten().diff() >= 0).all()


@families
@channels
def test_temperature_zero_gives_the_median(family, shape):
    """Channel by channel: F(x) = ½ given the earlier channels, and the noise does not matter."""
    p, noise = likelihood(family, shape), torch.randn(shape, generator=torch.Generator().manual_seed(3))
    median = p.place(noise, temperature=0.0)
    assert torch.equal(median, p.place(torch.zeros(shape)))
    u = p.standardize(median)
    assert u[median.abs() < 1].abs().max() < 1e-3 and (u[median == -1] == 0).all()
    if family is gaussian:
        assert torch.equal(median, p.loc.clamp(-1, 1))  # what the read-out says, for colours too


@families
def test_place_rises_with_the_noise(family):
    u = torch.linspace(-12, 12, 400).view(-1, 1, 1, 1).expand(-1, 1, 5, 5)
    for log_scale in (-8.0, -3.0, 0.0):
        p = family((1, 1, 5, 5), log_scale, spread=0.3)
        wide = DiscretizedGaussian(p.loc.expand_as(u), p.log_scale.expand_as(u)) if family is gaussian else LogisticMixture(
            *(v.expand(-1, len(u), -1, -1, -1) for v in (p.logits, p.locs, p.log_scales)))
        x = wide.place(u)
        assert (x.diff(dim=0) >= -1e-6).all() and x.min() >= -1 and x.max() <= 1 and (x[-1] - x[0]).min() > 1e-3
        torch.testing.assert_close(wide.place(u, 0.5), wide.place(0.5 * u))


@families
@pytest.mark.parametrize("shape", [(64, 1, 16, 16), (64, 3, 8, 8)], ids=["grey", "rgb"])
def test_noise_of_samples_has_its_own_law(family, shape):
    """Pixels with parameters of their own, drawn component by component, standardise to the law; its quantiles are placed back."""
    g = torch.Generator().manual_seed(4)
    law = stats.norm if family is gaussian else stats.logistic
    pixels = family(shape, -4.0, dtype=torch.float64, spread=0.2)
    sample = direct_sample(pixels, shape, g)
    inside = sample.abs() < 1 - 1 / 255  # those beyond are censored; a few outliers
    assert inside.double().mean() > 0.999 and stats.kstest(pixels.standardize(sample)[inside].numpy(), law.cdf).pvalue > 0.01
    p = likelihood(family, shape, -2.5, torch.float64)
    u = torch.from_numpy(law.ppf(torch.rand(shape, generator=g, dtype=torch.float64).numpy()))
    inside = p.place(u).abs() < 1 - 1 / 255
    assert inside.double().mean() > 0.5
    torch.testing.assert_close(p.standardize(p.place(u))[inside], u[inside], atol=1e-5, rtol=1e-5)


def direct_sample(p: IndependentPixels, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Pixels before confinement, by ancestral sampling: no inverse of F involved."""
    rank = torch.rand(shape, generator=g, dtype=torch.float64)
    if isinstance(p, DiscretizedGaussian):
        return p.loc + p.log_scale.exp() * torch.randn(shape, generator=g, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(torch.rand(p.logits.shape, generator=g, dtype=torch.float64)))
    component = (p.logits + gumbel).argmax(0, keepdim=True)
    loc, scale = (v.gather(0, component)[0] for v in (p.locs, p.log_scales.exp()))
    broad = torch.rand(shape, generator=g, dtype=torch.float64) < BACKGROUND
    return torch.where(broad, BREADTH * rank.logit(), loc + scale * rank.logit())


# ---------------------------------------------------------------------------------------------------- channels
@families
def test_without_coefficients_channels_are_independent(family):
    shape = (3, 3, 6, 6)
    pixels, x = family(shape, -2.0), pictures(shape)
    both = ChannelAutoregression(pixels, torch.zeros(shape))
    for method in ("log_prob", "standardize"):
        torch.testing.assert_close(getattr(both, method)(x), getattr(pixels, method)(x))
    u = pixels.standardize(x)
    torch.testing.assert_close(both.place(u), pixels.place(u))


def test_channels_move_by_what_was_not_expected():
    """Known answer: μ_2 + k_20 (x_0 − m_0) + k_21 (x_1 − m_1), with m confined to [-1, 1]."""
    loc, k = torch.tensor([-1.5, 0.2, 0.1]).view(1, 3, 1, 1), torch.tensor([0.5, -0.25, 0.8]).view(1, 3, 1, 1)
    p = ChannelAutoregression(DiscretizedGaussian(loc, torch.full_like(loc, -2.0)), k)
    x = torch.tensor([-0.6, 0.7, 0.0]).view(1, 3, 1, 1)
    expected = torch.tensor([-1.5, 0.2 + 0.5 * 0.4, 0.1 - 0.25 * 0.4 + 0.8 * 0.5]).view(1, 3, 1, 1)
    torch.testing.assert_close(p.standardize(x), (x - expected) * math.exp(2))
    torch.testing.assert_close(p.place((x - expected) * math.exp(2)), x)
    black = torch.tensor([-1.0, 0.7, 0.0]).view(1, 3, 1, 1)  # as black as expected: nothing to hand on
    assert p.standardize(black)[0, 1].item() == pytest.approx(0.5 * math.exp(2), rel=1e-5)


@families
def test_a_channel_depends_on_earlier_ones_only(family):
    shape = (2, 3, 4, 4)
    p, x = likelihood(family, shape), pictures(shape)
    for c in range(3):
        other = x.clone()
        other[:, c] = 0.3
        changed = [not torch.equal(p.log_prob(x)[:, d], p.log_prob(other)[:, d]) for d in range(3)]
        assert changed == [d >= c for d in range(3)]


# ---------------------------------------------------------------------------------------------------- gradients
def double(family: Family, shape: tuple[int, ...], log_scale: float = -1.0) -> tuple[Callable[..., PixelLikelihood], list[Tensor]]:
    """A function of the parameters, and parameters that ask for gradients."""
    pixels = family(shape, log_scale, dtype=torch.float64, spread=0.4)
    kind = type(pixels)
    own = [pixels.loc, pixels.log_scale] if kind is DiscretizedGaussian else [pixels.logits, pixels.locs, pixels.log_scales]
    pairs = [coefficients(shape, dtype=torch.float64)] if shape[1] > 1 else []
    parameters = [v.detach().clone().requires_grad_() for v in (*own, *pairs)]

    def make(*values: Tensor) -> PixelLikelihood:
        inner = kind(*values[: len(own)])
        return ChannelAutoregression(inner, values[-1]) if pairs else inner

    return make, parameters


@families
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3, 1, 1)], ids=["grey", "rgb"])
def test_gradients_agree_with_differences(family, shape):
    make, parameters = double(family, shape)
    g = torch.Generator().manual_seed(6)
    x = (torch.rand(shape, generator=g, dtype=torch.float64) - 0.5).requires_grad_()
    u = (torch.randn(shape, generator=g, dtype=torch.float64) / 4).requires_grad_()
    assert (make(*parameters).place(u).abs() < 1).double().mean() > 0.5
    for method, argument in (("place", u), ("standardize", x), ("log_prob", x)):
        assert torch.autograd.gradcheck(lambda a, *v, name=method: getattr(make(*v), name)(a), (argument, *parameters))


@families
def test_saturated_pixels_have_no_gradient(family):
    make, parameters = double(family, (2, 1, 3, 3))
    u = torch.full((2, 1, 3, 3), 60.0, dtype=torch.float64, requires_grad=True)
    x = make(*parameters).place(u)
    assert (x == 1).all() and not any(g.any() for g in torch.autograd.grad(x.sum(), (u, *parameters)))


@families
def test_gradients_are_finite_and_point_home(family):
    """However wild the prediction or the scale. (What nothing predicts, a mixture leaves to its background.)"""
    for log_scale in (-12.0, -7.0, -2.0, 1.0):
        make, parameters = double(family, (161, 1, 1, 1), log_scale)
        loc = parameters[0 if family is gaussian else 1]
        with torch.no_grad():
            loc.copy_(torch.linspace(-4, 4, 161, dtype=torch.float64).view(-1, 1, 1, 1).expand_as(loc))
        for x in (-1.0, -0.2, 1.0):
            level = LEVELS[(LEVELS - x).abs().argmin()].double()
            singles = [v.float() for v in parameters]
            loss = -make(*singles).log_prob(level.float().expand(161, 1, 1, 1)).sum()
            gradients = torch.autograd.grad(loss, parameters)
            assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
            pull = gradients[0 if family is gaussian else 1] * (loc.detach() - level)
            assert (pull[((loc - level).abs() > 0.01) & (loc.abs() <= 1)] >= 0).all()


def test_gradient_in_a_gap_is_bounded():
    """Between two spikes F is nearly flat: dx/du is 1/u' ≈ 700, of which 10 is passed on; the value is right all the same."""
    spikes = [torch.tensor(v).view(2, 1, 1, 1, 1) for v in ((0.0, 0.0), (-0.7, 0.7), (-7.0, -7.0))]
    p = LogisticMixture(*spikes)
    u = p.standardize(torch.full((1, 1, 1, 1), 0.1)).requires_grad_()
    x = p.place(u)
    assert x.item() == pytest.approx(0.1, abs=QUARTER_LEVEL) and torch.autograd.grad(x, u)[0].item() == pytest.approx(10, rel=1e-4)


# ---------------------------------------------------------------------------------------------------- read-outs
def readout(kind: str, channels: int, parents: int = 3, spread: float = 0.0, **changes: int) -> BilinearReadout | MixtureReadout:
    torch.manual_seed(0)
    made = make_readout(replace(ImageConfig(likelihood=kind), **changes), 6, parents, channels)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return made


kinds = pytest.mark.parametrize("kind", ["gaussian", "logistic-mixture"])
colours = pytest.mark.parametrize("channels", [1, 3])


@kinds
@colours
@pytest.mark.parametrize("parents", [0, 3])
@pytest.mark.parametrize("changes", [{}, {"patch": 1, "bases": 1, "components": 1}, {"patch": 4, "bases": 3, "components": 5}])
def test_read_outs_fit_their_features(kind, channels, parents, changes):
    made = readout(kind, channels, parents, 0.1, **changes)
    size = 4 * changes.get("patch", 2)
    h, pa, x = torch.randn(5, 6, 4, 4), torch.randn(5, parents), pictures((5, channels, size, size))
    p = made(h, pa)
    assert p.loc.shape == p.log_prob(x).shape == x.shape and (p.place(p.standardize(x)) - x).abs().max() < QUARTER_LEVEL / 2
    p.log_prob(x).sum().backward()
    # a single component's logit is a free constant; without parents their matrices are empty
    idle = {"shapes.weight", "shapes.bias"} if changes.get("components") == 1 else set()
    for name, parameter in made.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad.any() or not parameter.numel() or name in idle), name


@kinds
@colours
def test_parents_act_linearly_on_the_read_out(kind, channels):
    """μ + 1 is affine in the parents, that of every component too: ten times the step is ten times the change."""
    made, h, step = readout(kind, channels, spread=0.1), torch.randn(1, 6, 4, 4), torch.tensor([[1.0, -2.0, 0.5]])
    base, one, ten = (made(h, k * step) for k in (0, 1, 10))
    torch.testing.assert_close(ten.loc - base.loc, 10 * (one.loc - base.loc), rtol=1e-3, atol=1e-4)
    assert not torch.equal(base.loc, one.loc)
    if kind == "logistic-mixture":
        locs = [getattr(p, "independent", p).locs for p in (base, one, ten)]
        torch.testing.assert_close(locs[2] - locs[0], 10 * (locs[1] - locs[0]), rtol=1e-3, atol=1e-4)


@kinds
def test_coefficients_start_at_zero_and_stay_bounded(kind):
    h, pa = torch.randn(2, 6, 4, 4), torch.randn(2, 3)
    assert not readout(kind, 3)(h, pa).coefficients.any() and readout(kind, 3)(h, pa).coefficients.shape == (2, 3, 8, 8)
    wild = readout(kind, 3, spread=5.0)
    k = wild(h, pa).coefficients
    assert k.abs().max() <= 1 and not torch.equal(k, wild(h, pa + 0.1).coefficients) and k.std() > 0


def test_grey_gaussian_keeps_its_parameters():
    """Checkpoints of earlier versions hold these."""
    shapes = {n: tuple(v.shape) for n, v in readout("gaussian", 1).state_dict().items()}
    assert shapes == {"maps.weight": (12, 6, 3, 3), "maps.bias": (12,), "offset": (1, 2, 1, 1), "weights.weight": (2, 3),
                      "weights.bias": (2,), "log_scale.weight": (1, 3), "log_scale.bias": (1,)}


def test_components_start_apart():
    p = readout("logistic-mixture", 1)(torch.randn(4, 6, 4, 4), torch.randn(4, 3))
    centres = p.locs.mean((1, 2, 3, 4))
    assert (centres.diff() > 0.05).all() and centres[-1] - centres[0] > 0.9


@kinds
@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 20, 20)], ids=["grey", "rgb"])
def test_residuals_are_drawn_from_their_law(kind, shape):
    u = readout(kind, shape[0]).draw_residual(20, shape, Noise(0))
    law = stats.norm if kind == "gaussian" else stats.logistic
    assert u.shape == (20, *shape) and stats.kstest(u.flatten().numpy(), law.cdf).pvalue > 0.01
    assert torch.equal(u, readout(kind, shape[0]).draw_residual(20, shape, Noise(0)))


def test_far_noise_stays_finite():
    far = torch.tensor([-12.0, -6.0, 6.0, 12.0])
    u = readout("logistic-mixture", 1).draw_residual(4, (1,), lambda *shape: far.view(*shape)).flatten()
    np.testing.assert_allclose(u.numpy(), stats.norm.logcdf(far) - stats.norm.logsf(far), rtol=1e-5)


@kinds
def test_half_precision_leaves_the_pixels_alone(kind):
    made, h, pa = readout(kind, 3, spread=0.1), torch.randn(2, 6, 4, 4), torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made(h, pa)
    assert half.loc.dtype == torch.float32 and torch.equal(half.loc, made(h, pa).loc)


def test_unknown_likelihoods_are_refused():
    with pytest.raises(UserError, match=naming("'poisson' gaussian logistic-mixture")):
        make_readout(replace(ImageConfig(), likelihood="poisson"), 6, 3, 1)

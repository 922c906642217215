"""The laws of DESIGN.md for the image mechanism: presets and tiny topologies, grey and colour, several sizes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from datasets import Graph, Variable
from datasets.errors import UserError
from mechanisms.image.config import PRESETS, ImageConfig
from mechanisms.image.hvae import HVAE
from mechanisms.image.likelihood import DiscretizedGaussian, kl_to_standard_normal, soft_bound
from mechanisms.image.noise import LatentNoise
from mechanisms.image.readout import BilinearReadout
from mechanisms.image.registry import build
from mechanisms.image.topology import default_topology, parse_topology, parse_widths
from mechanisms.training.noise import Noise
from tests.errors import naming

ROWS = 12
SMALL = ImageConfig(z_dim=3, embedding=12, bases=2)
TINY = replace(SMALL, encoder="8b1d2,4b1,1b1", decoder="1b2,4b1,8b1", widths="8:8,4:12,1:16", patch=2)
CASES = {
    "tiny-grey-16": (TINY, 1, 16),
    "tiny-rgb-16": (TINY, 3, 16),
    "folded-grey-28": (replace(SMALL, widths="14:8,7:8,1:8"), 1, 28),
    "folded-rgb-32": (replace(SMALL, widths="16:8,8:8,4:8,1:8"), 3, 32),
    "pixels-grey-12": (replace(SMALL, widths="12:8,6:8,3:8,1:8", patch=1), 1, 12),
    "one-level-rgb-4": (SMALL, 3, 4),
    "cpu-grey-32": (ImageConfig(**PRESETS["cpu"]), 1, 32),
    "reference-grey-32": (ImageConfig(**PRESETS["reference"]), 1, 32),
}
PARENTS = (Variable("age", "real"), Variable("digit", "categorical", classes=3), Variable("width", "positive"))


def values(seed: int = 0, rows: int = ROWS) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"age": 40 + 10 * torch.randn(rows, generator=g), "digit": torch.randint(3, (rows,), generator=g),
            "width": torch.rand(rows, generator=g) + 0.5}


def graph(channels: int, size: int, parents: tuple[str, ...] = ("age", "digit", "width")) -> Graph:
    return Graph([*PARENTS, Variable("image", "image", parents, shape=(channels, size, size))]).fitted(values(5, 200))


def pictures(channels: int, size: int, seed: int = 0) -> Tensor:
    """Grey levels of 0..255 as floats, a third of them black and a third white."""
    g = torch.Generator().manual_seed(seed)
    levels = torch.randint(-255, 511, (ROWS, channels, size, size), generator=g).clamp(0, 255)
    return levels.float() / 255


def make(case: str, spread: float = 0.05, seed: int = 0) -> tuple[HVAE, Tensor]:
    """A model some way from its initial parameters, and images for it."""
    config, channels, size = CASES[case]
    torch.manual_seed(seed)
    model = HVAE(graph(channels, size), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval(), pictures(channels, size)


every = pytest.mark.parametrize("case", CASES)
tiny = pytest.mark.parametrize("case", ["tiny-grey-16", "tiny-rgb-16"])


# ---------------------------------------------------------------------------------------------------- the laws
@tiny
def test_temperature_scales_the_residual(case):
    model, images = make(case)
    noise = model.abduct(images, values())
    bare = model.predict(noise, values(), temperature=0.0)
    assert torch.equal(bare, model.predict(LatentNoise(noise.latents, torch.zeros_like(noise.residual)), values()))
    assert (bare - images).abs().mean() > 0.05


# ---------------------------------------------------------------------------------------------------- noise and parents
@every
def test_noise_of_the_prior_never_sees_a_parent(case):
    model, images = make(case)
    drawn, abducted = model.draw_noise(ROWS, Noise(0)), model.abduct(images, values())
    assert [z.shape for z in drawn.latents] == [z.shape for z in abducted.latents] and len(drawn) == ROWS
    assert drawn.residual.shape == images.shape and len(drawn.latents) == sum(n for _, n in model.decoder_stages)
    left, right = (model.predict(drawn, values(seed)) for seed in (0, 1))
    assert left.shape == images.shape and left.min() >= 0 and left.max() <= 1 and not torch.equal(left, right)


@tiny
def test_rate_is_the_divergence_to_a_standard_normal(case):
    """The prior of every level is N(0, 1) whatever the parents: the KL of every q, in closed form by torch."""
    model, images = make(case)
    levels, h_seen = [], []
    for stage in model.decoder:
        for level in stage:
            posterior = level.posterior
            level.posterior = lambda *args, call=posterior: levels.append(call(*args)) or levels[-1]
            level.register_forward_pre_hook(lambda _, inputs: h_seen.append(inputs[1]))
    terms = model(dict(values(), image=images), noise := Noise(4))
    normal = torch.distributions.Normal
    exact = sum(torch.distributions.kl_divergence(normal(q.loc, q.log_scale.exp()), normal(0.0, 1.0)).sum((1, 2, 3)) for q in levels)
    torch.testing.assert_close(terms["rate"], exact, rtol=1e-4, atol=1e-3)
    assert len(h_seen) == len(levels) and not torch.equal(h_seen[0], levels[0].loc)  # z is drawn, not the mean
    torch.testing.assert_close(terms["free_energy"], terms["rate"] + terms["distortion"])
    assert noise.generator.initial_seed() == 4


@tiny
def test_free_energy_bounds_the_evidence(case):
    """E_q[p(x|z) p(z) / q(z)] = p(x): with many draws, importance sampling may only lower the free energy."""
    model, images = make(case, spread=0.0)
    draws = torch.stack([model.free_energy(images, values(), Noise(seed)) for seed in range(30)])
    evidence = torch.logsumexp(-draws, 0) - math.log(30)
    assert (-draws.mean(0) <= evidence + 1e-3).all()


@tiny
def test_abduction_draws_only_when_asked(case):
    model, images = make(case)
    mean, again = model.abduct(images, values()), model.abduct(images, values())
    first, same, other = (model.abduct(images, values(), Noise(seed)) for seed in (0, 0, 1))
    for k, z in enumerate(mean.latents):
        assert torch.equal(z, again.latents[k]) and torch.equal(first.latents[k], same.latents[k])
        assert not torch.equal(first.latents[k], other.latents[k]) and not torch.equal(z, first.latents[k])


def test_image_without_parents():
    torch.manual_seed(0)
    model, images = HVAE(graph(1, 16, ()), TINY), pictures(1, 16)
    terms = model({"image": images}, Noise(0))
    terms["loss"].mean().backward()
    assert terms["loss"].isfinite().all()
    again = model.predict(model.abduct(images, {}), {})
    assert torch.equal((again * 255).round(), images * 255)


@tiny
def test_objective_follows_its_options(case):
    model, images = make(case)
    batch = dict(values(), image=images)
    terms = model(batch, Noise(0))
    assert torch.equal(terms["loss"], terms["free_energy"])
    for changes, progress, rate in (({"beta": 3.0}, 1.0, 3.0), ({"beta_warmup": 0.5}, 0.25, 0.5), ({"beta_warmup": 0.5}, 0.9, 1.0)):
        model.config = replace(model.config, beta=1.0, beta_warmup=0.0)
        model.config = replace(model.config, **changes)
        other = model(batch, Noise(0), progress)
        torch.testing.assert_close(other["loss"], terms["distortion"] + rate * terms["rate"])
        assert torch.equal(other["free_energy"], terms["free_energy"])
    model.config = replace(model.config, beta=1.0, beta_warmup=0.0, free_bits=1e4)
    floor = 1e4 * sum(n for _, n in model.decoder_stages)
    torch.testing.assert_close(model(batch, Noise(0))["loss"], terms["distortion"] + floor)


def test_training_lowers_the_free_energy():
    torch.manual_seed(0)
    model = HVAE(graph(1, 16), TINY)
    bright = values()["width"].view(-1, 1, 1, 1).expand(-1, 1, 16, 16) / 2  # one parent is the brightness
    batch = dict(values(), image=(bright * 255).round() / 255)
    optimizer, noise, energies = torch.optim.Adam(model.parameters(), lr=3e-3), Noise(0), []
    for _ in range(60):
        optimizer.zero_grad()
        energies.append((loss := model(batch, noise)["loss"].mean()).item())
        loss.backward()
        optimizer.step()
    assert energies[-1] < energies[0] / 2 < energies[0]


# ---------------------------------------------------------------------------------------------------- likelihood
LEVELS = torch.arange(256.0) / 255 * 2 - 1


def reference(x: np.ndarray, loc: float, scale: float) -> np.ndarray:
    """log P(grey level) in double precision, from whichever tail does not cancel."""
    high = np.where(x > 1 - 1 / 255, np.inf, (x + 1 / 255 - loc) / scale)
    low = np.where(x < -1 + 1 / 255, -np.inf, (x - 1 / 255 - loc) / scale)
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    upper, lower = stats.norm.logcdf(high), stats.norm.logcdf(low)
    return upper + np.log1p(-np.exp(lower - upper))


SCALES = (1e-3, 0.004, 0.05, 0.4, 2.0)
GRID = pytest.mark.parametrize("loc, scale", [(loc, scale) for loc in (-1.3, -1.0, 0.1, 0.77, 1.0) for scale in SCALES])


@GRID
def test_masses_of_all_grey_levels_sum_to_one(loc, scale):
    masses = DiscretizedGaussian(torch.full((256,), loc), torch.full((256,), math.log(scale))).log_prob(LEVELS).exp()
    assert masses.sum().item() == pytest.approx(1, abs=5e-4)


@GRID
def test_mass_agrees_with_double_precision(loc, scale):
    ours = DiscretizedGaussian(torch.full((256,), loc), torch.full((256,), math.log(scale))).log_prob(LEVELS).numpy()
    exact = reference(LEVELS.double().numpy(), loc, scale)
    near = exact > math.log(2e-6)
    np.testing.assert_allclose(ours[near], exact[near], atol=0.02)
    assert (ours[~near] < math.log(3e-6)).all()  # the far tail never looks likely …
    far = ~near[1:-1] if scale >= 2 / 255 else np.zeros(254, bool)
    np.testing.assert_allclose(ours[1:-1][far], exact[1:-1][far], rtol=0.12)  # … and is right where a bin is no wider than σ


def test_gradients_are_finite_and_point_home():
    for scale in (1e-5, 1e-3, 0.1, 3.0):
        loc = torch.linspace(-4, 4, 161).requires_grad_()
        log_scale = torch.full((161,), math.log(scale)).requires_grad_()
        for x in (-1.0, -0.2, 1.0):
            level = LEVELS[(LEVELS - x).abs().argmin()]
            loss = -DiscretizedGaussian(loc, log_scale).log_prob(level.expand(161)).sum()
            slope, other = torch.autograd.grad(loss, (loc, log_scale))
            assert loss.isfinite() and slope.isfinite().all() and other.isfinite().all()
            wild = (loc - level).detach().abs() > 0.5
            censored = loc.detach().abs() > 1  # beyond black and white nothing pulls
            assert ((slope * (loc - level)).detach()[wild & ~censored] >= 0).all()
            assert slope[wild & ~censored].abs().min() > 0


@pytest.mark.parametrize("scale", [1e-3, 0.01, 0.5])
def test_place_inverts_standardize(scale):
    loc = torch.linspace(-1.5, 1.5, 61).repeat_interleave(256)
    p, x = DiscretizedGaussian(loc, torch.full_like(loc, math.log(scale))), LEVELS.repeat(61)
    u = p.standardize(x)
    assert (p.place(u) - x).abs().max() < 1 / 255 / 10
    assert torch.equal(p.place(u, temperature=0.0), loc.clamp(-1, 1))
    black, white = x == -1, x == 1
    assert (u[black] <= 0).all() and (u[white] >= 0).all()
    assert (u[black & (loc <= -1)] == 0).all() and (u[white & (loc >= 1)] == 0).all()  # censored: nothing is known beyond


def test_divergence_and_bound():
    loc, log_scale = torch.randn(100), torch.randn(100)
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(loc, log_scale.exp()), torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(loc, log_scale), exact)
    x = torch.linspace(-60, 60, 2001).requires_grad_()
    y = soft_bound(x, -9.0, 1.0)
    assert -9.6 < y.min() and y.max() < 1.6 and soft_bound(torch.tensor(-4.0), -9.0, 1.0).item() == -4
    assert (y.diff() >= 0).all() and torch.autograd.grad(y.sum(), x)[0].min() > 0.009


def test_parents_act_linearly_on_the_read_out():
    """μ + 1 is affine in the parents: doubling their distance doubles the change, however far out."""
    torch.manual_seed(0)
    readout, h, step = BilinearReadout(6, 3, channels=3, bases=2, patch=2), torch.randn(1, 6, 4, 4), torch.tensor([[1.0, -2.0, 0.5]])
    base, one, ten = (readout(h, k * step).loc for k in (0, 1, 10))
    torch.testing.assert_close(ten - base, 10 * (one - base), rtol=1e-4, atol=1e-5)
    assert base.shape == (1, 3, 8, 8) and not torch.equal(base, one)


def test_half_precision_leaves_the_pixels_alone():
    model, images = make("tiny-grey-16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = model.abduct(images, values())
        again = model.predict(noise, values())
        terms = model(dict(values(), image=images), Noise(0))
    assert again.dtype == noise.residual.dtype == terms["free_energy"].dtype == torch.float32
    assert torch.equal((again * 255).round(), images * 255)
    full = model(dict(values(), image=images), Noise(0))["free_energy"]
    torch.testing.assert_close(terms["free_energy"], full, rtol=0.05, atol=1.0)


# ---------------------------------------------------------------------------------------------------- topologies
def test_topologies_are_read():
    assert parse_topology("32b3d2, 16b2,4b1d4,1b4") == [(32, 3), (16, 2), (4, 1), (1, 4)]
    assert parse_widths("8:96, 4:128", [(8, 1), (4, 1)], [(4, 2), (8, 2)], 8) == {8: 96, 4: 128}


@pytest.mark.parametrize("finest", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 48, 64])
def test_default_topology_fits_every_size(finest):
    encoder, decoder, widths = default_topology(finest)
    stages = parse_topology(encoder), parse_topology(decoder)
    parse_widths(widths, *stages, finest)
    assert stages[0][-1][0] == stages[1][0][0] == 1


@pytest.mark.parametrize("text, message", [
    ("8x2", "'8x2' <resolution>b<blocks>"), ("", "''"), ("8b0", "'8b0'"), ("0b1", "'0b1'"), ("8b1,,4b1", "''"),
    ("8b2d2,2b1", "'8b2d2,2b1' 4 2"), ("8b1,3b1", "'8b1,3b1' 8 3"),
])
def test_malformed_topologies_are_refused(text, message):
    with pytest.raises(UserError, match=naming(message)):
        parse_topology(text)


@pytest.mark.parametrize("changes, message", [
    ({"encoder": "16b1d2,8b1,4b1"}, "encoder 16 decoder 8"),
    ({"decoder": "1b1,4b1"}, "decoder 4"),
    ({"decoder": "2b1,8b1"}, "decoder [2] [8, 4, 1]"),
    ({"widths": "8:8,1:8"}, "'8:8,1:8' [4]"),
    ({"widths": "8:8,4"}, "'4' <resolution>:<channels>"),
    ({"patch": 3}, "patch=3"),
])
def test_topologies_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=naming(message)):
        HVAE(graph(1, 16), replace(TINY, **changes))


@pytest.mark.parametrize("changes", [{"encoder": "8b1,1b1,4b1"}, {"decoder": "1b1,4b1,1b1,8b1"}, {"patch": 0}, {"z_dim": 0}, {"bases": 0}])
def test_impossible_numbers_are_refused(changes):
    with pytest.raises(UserError):
        HVAE(graph(1, 16), replace(TINY, **changes))


def test_images_that_are_not_square_are_refused():
    shape = Graph([*PARENTS, Variable("image", "image", ("age",), shape=(1, 16, 12))]).fitted(values(5, 200))
    with pytest.raises(UserError, match=naming("16×12 HVAE patch=2")):
        HVAE(shape)
    with pytest.raises(UserError, match=naming("'gan' hvae vae")):
        build("gan", shape)


def test_a_resolution_has_one_width_and_sizes_have_an_end():
    with pytest.raises(UserError, match=naming("'8:96,4:128,8:97' 8 96 97")):
        parse_widths("8:96,4:128,8:97", [(8, 1), (4, 1)], [(4, 2), (8, 2)], 8)
    with pytest.raises(UserError, match=naming("'8:100000000'")):
        parse_widths("8:100000000", [(8, 1)], [(8, 1)], 8)
    with pytest.raises(UserError, match=naming("'8b100000000'")):
        parse_topology("8b100000000")

"""The laws of DESIGN.md for every attribute mechanism, kind of variable, and with and without parents."""

from __future__ import annotations

import importlib
import io
import pkgutil

import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor

import mechanisms
from datasets import SchemaError, Statistics, Variable
from mechanisms.base import AttributeMechanism
from mechanisms.discrete import GumbelMax
from mechanisms.flows import Flow

VARIABLES = {
    "real": Variable("x", "real", statistics=Statistics(mean=3, std=2, location=3, scale=2)),
    "positive": Variable("x", "positive", low=0.5, statistics=Statistics(mean=2.5, std=0.6, location=0.6, scale=0.3)),
    "interval": Variable("x", "interval", low=64, high=255,
                         statistics=Statistics(mean=160, std=60, location=0.1, scale=1.3)),
    "binary": Variable("x", "binary", statistics=Statistics(counts=(900, 100))),
    "categorical": Variable("x", "categorical", classes=5, statistics=Statistics(counts=(500, 300, 150, 50, 0))),
}


def takes(cls: type[AttributeMechanism], kind: str) -> bool:
    """Whether a mechanism is one of variables of this kind; it refuses others."""
    try:
        return cls(VARIABLES[kind], 0) is not None
    except SchemaError:
        return False


# every class of every file beside mechanisms/base.py, so that a new mechanism is under these laws as soon as it is there
MODULES = [importlib.import_module(module.name) for module in pkgutil.iter_modules(mechanisms.__path__, "mechanisms.") if not module.ispkg]
CLASSES = sorted({value for module in MODULES for value in vars(module).values() if isinstance(value, type)
                  and issubclass(value, AttributeMechanism) and value is not AttributeMechanism}, key=lambda cls: cls.__name__)
CASES = [pytest.param(cls, kind, width, id=f"{cls.__name__}-{kind}-{width}")
         for cls in CLASSES for kind in VARIABLES if takes(cls, kind) for width in (0, 3)]
FLOWS = [case for case in CASES if issubclass(case.values[0], Flow)]
every = pytest.mark.parametrize("cls, kind, width", CASES)
every_flow = pytest.mark.parametrize("cls, kind, width", FLOWS)


def build(cls: type[AttributeMechanism], kind: str, width: int, spread: float = 0.5) -> AttributeMechanism:
    """A mechanism some way from its initial parameters."""
    torch.manual_seed(0)
    mechanism = cls(VARIABLES[kind], width)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return mechanism


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contexts(size: int, width: int) -> Tensor:
    return torch.randn(size, width, generator=generator(7))


def one_context(size: int, width: int) -> Tensor:
    return contexts(1, width).expand(size, width)


def grid(mechanism: AttributeMechanism, size: int = 100_001) -> Tensor:
    """Physical values that cover the support, dense where the unconstrained coordinate is of order one."""
    u = torch.linspace(-12, 12, size, dtype=torch.float64)
    return mechanism.variable.constrain(u.sinh() / 5 if mechanism.variable.kind == "real" else u)


# ---------------------------------------------------------------------------------------------------- laws 1 to 3
@every
def test_predict_inverts_abduct(cls, kind, width):
    mechanism, context = build(cls, kind, width), contexts(2000, width)
    x = mechanism.sample(context, generator())
    again = mechanism.predict(mechanism.abduct(x, context, generator(1)), context)
    if mechanism.variable.discrete:
        assert x.dtype == torch.int64 and torch.equal(again, x)
    else:
        torch.testing.assert_close(again, x, rtol=1e-4, atol=1e-4 * mechanism.variable.statistics.std)


@every_flow
def test_log_prob_is_the_jacobian(cls, kind, width):
    mechanism, context = build(cls, kind, width).double(), contexts(500, width).double()
    u = torch.randn(500, dtype=torch.float64, generator=generator()).requires_grad_()
    x = mechanism.predict(u, context)
    (slope,) = torch.autograd.grad(x.sum(), u)
    expected = torch.distributions.Normal(0, 1).log_prob(u) - slope.abs().log()
    torch.testing.assert_close(mechanism.log_prob(x, context), expected, rtol=1e-5, atol=1e-5)


@every
def test_density_integrates_to_one(cls, kind, width):
    mechanism = build(cls, kind, width).double()
    if mechanism.variable.discrete:
        x = torch.arange(mechanism.variable.cardinality)
        total = mechanism.log_prob(x, one_context(len(x), width).double()).exp().sum()
    else:
        x = grid(mechanism)
        total = torch.trapezoid(mechanism.log_prob(x, one_context(len(x), width).double()).exp(), x)
    assert total.item() == pytest.approx(1, abs=2e-4)


@every
def test_samples_follow_the_density(cls, kind, width):
    mechanism, size = build(cls, kind, width), 20_000
    samples = mechanism.sample(one_context(size, width), generator())
    if mechanism.variable.discrete:
        x = torch.arange(mechanism.variable.cardinality)
        cdf = mechanism.log_prob(x, one_context(len(x), width)).exp().cumsum(0)
    else:
        x = grid(mechanism)
        density = mechanism.double().log_prob(x, one_context(len(x), width).double()).exp()
        cdf = torch.cumulative_trapezoid(density, x)
        keep = slice(0, None, 50)
        x, cdf = x[1:][keep], cdf[keep]
    empirical = torch.searchsorted(samples.sort().values.double(), x.double().contiguous(), right=True) / size
    assert (empirical - cdf).abs().max() < 1.63 / size**0.5  # Kolmogorov–Smirnov at 1 %


@every
@pytest.mark.parametrize("spread", [0, 0.5])
def test_gradients_reach_every_parameter(cls, kind, width, spread):
    mechanism, context = build(cls, kind, width, spread), contexts(256, width)
    mechanism.log_prob(mechanism.sample(context, generator()).detach(), context).mean().backward()
    for name, parameter in mechanism.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@every
def test_saved_and_loaded_gives_the_same(cls, kind, width):
    mechanism, context, file = build(cls, kind, width), contexts(100, width), io.BytesIO()
    torch.save(mechanism.state_dict(), file)
    file.seek(0)
    other = cls(VARIABLES[kind], width)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = mechanism.sample(context, generator())
    assert torch.equal(x, other.sample(context, generator()))
    assert torch.equal(mechanism.log_prob(x, context), other.log_prob(x, context))
    assert torch.equal(mechanism.abduct(x, context, generator(1)), other.abduct(x, context, generator(1)))


# ---------------------------------------------------------------------------------------------------- every mechanism
@every
def test_distribution_is_a_pyro_site(cls, kind, width):
    mechanism, context = build(cls, kind, width), contexts(50, width)
    with pyro.plate("rows", 50):
        x = pyro.sample("x", mechanism.distribution(context))
    distribution = mechanism.distribution(context)
    assert distribution.batch_shape == (50,) and distribution.event_shape == () and x.shape == (50,)
    assert distribution.support.check(x).all()
    mechanism.variable.check(x.detach())


@every
def test_noise_broadcasts_against_worlds(cls, kind, width):
    mechanism, worlds = build(cls, kind, width), contexts(2 * 30, width).reshape(2, 30, width)
    noise = mechanism.draw_noise((30,), generator())
    together = mechanism.predict(noise, worlds)
    assert together.shape == (2, 30)
    torch.testing.assert_close(together[1], mechanism.predict(noise, worlds[1]))


@every
def test_autocast_changes_nothing(cls, kind, width):
    mechanism, context = build(cls, kind, width), contexts(50, width)
    x = mechanism.sample(context, generator()).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mechanism.log_prob(x, context)
    assert torch.equal(inside, mechanism.log_prob(x, context))


def test_the_classes_are_found():
    assert {Flow, GumbelMax} <= set(CLASSES) and all(any(takes(cls, kind) for kind in VARIABLES) for cls in CLASSES)
    assert all(any(takes(cls, kind) for cls in CLASSES) for kind in VARIABLES)


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("width", [0, 3])
def test_wrong_kind_is_refused(kind, width):
    for cls in CLASSES:
        if not takes(cls, kind):
            with pytest.raises(SchemaError, match=kind):
                cls(VARIABLES[kind], width)


# ---------------------------------------------------------------------------------------------------- flows
@every_flow
def test_extremes_stay_finite_and_inside(cls, kind, width):
    mechanism = build(cls, kind, width)
    edges = {"real": [-1e6, 1e6], "positive": [0.5000001, 1e6], "interval": [64, 64.00001, 254.99998, 255]}[kind]
    x = torch.tensor(edges)
    context = one_context(len(x), width)
    log_prob = mechanism.log_prob(x, context)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and mechanism.abduct(x, context).isfinite().all()
    assert all(p.grad.isfinite().all() for p in mechanism.parameters())
    noise = torch.tensor([-30.0, -8, 0, 8, 30])
    far = mechanism.predict(noise, 100 * one_context(len(noise), width))
    mechanism.variable.check(far.detach())


@every_flow
def test_steep_splines_stay_invertible(cls, kind, width):
    mechanism, noise = build(cls, kind, width, spread=0.0), torch.linspace(-6, 6, 1001)
    with torch.no_grad():
        mechanism.conditioner.initial[2:].normal_(std=8, generator=generator())
    x = mechanism.predict(noise, one_context(1001, width))
    assert x.isfinite().all() and (x.diff() >= 0).all()


def test_location_extrapolates_linearly():
    """Far outside the training range a real effect follows its parent in a straight line, with levelled-off scale."""
    mechanism = build(Flow, "real", 1)
    noise, far = torch.zeros(3), torch.tensor([[1e4], [2e4], [3e4]])
    first, second = mechanism.predict(noise, far).diff().tolist()
    assert first == pytest.approx(second, rel=1e-4)


def test_flow_recovers_the_true_process():
    """ANCHORS §1: intensity given thickness, in a few seconds' training; the benchmark asks for 0.01 nat."""
    torch.manual_seed(0)
    t = 0.5 + torch.distributions.Gamma(10.0, 5.0).sample((12_000,))
    y = 2 * (t - 2.5) + 0.5 * torch.randn(12_000)
    i = 64 + 191 * torch.sigmoid(y)
    cause = Variable("t", "positive").fitted(t)
    mechanism = Flow(Variable("i", "interval", low=64, high=255).fitted(i), 1)
    context, fit, test = cause.encode(t), slice(0, 10_000), slice(10_000, None)
    optimiser = torch.optim.Adam(mechanism.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 150)
    for _ in range(150):
        rows = torch.randint(10_000, (512,))
        optimiser.zero_grad()
        (-mechanism.log_prob(i[fit][rows], context[fit][rows]).mean()).backward()
        optimiser.step()
        schedule.step()
    p = ((i - 64) / 191).double()
    true = torch.distributions.Normal(2 * (t - 2.5), 0.5).log_prob(y) - (191 * p * (1 - p)).log()
    with torch.no_grad():
        assert (true[test] - mechanism.log_prob(i[test], context[test])).mean() < 0.03
        thicker = mechanism.predict(mechanism.abduct(i[test], context[test]), cause.encode(t[test] + 0.5))
    assert (thicker - (64 + 191 * torch.sigmoid(y[test] + 1))).abs().mean() < 2


# ---------------------------------------------------------------------------------------------------- Gumbel posterior
def gumbel(probabilities: list[float]) -> GumbelMax:
    mechanism = GumbelMax(Variable("x", "categorical", classes=len(probabilities)), 0)
    with torch.no_grad():
        mechanism.conditioner.initial.copy_(torch.tensor(probabilities).log())
    return mechanism


def test_first_logits_are_the_class_counts():
    mechanism = GumbelMax(VARIABLES["binary"], 0)
    torch.testing.assert_close(mechanism.logits(torch.zeros(1, 0)).exp(), torch.tensor([[0.9, 0.1]]))


@pytest.mark.parametrize("probabilities", [[0.5, 0.5], [1e-4, 0.3, 0.6999], [1e-20, 1.0], [1.0, 1e-12, 1e-30, 1e-3]])
def test_observed_class_is_always_reproduced(probabilities):
    mechanism, size = gumbel(probabilities), 50_000
    context = torch.zeros(size, 0)
    for k in range(len(probabilities)):
        x = torch.full((size,), k)
        noise = mechanism.abduct(x, context, generator(k))
        assert noise.isfinite().all() and torch.equal(mechanism.predict(noise, context), x)


def test_observed_class_survives_rounding(monkeypatch):
    """A draw of one in ten million: the runner-up, truncated, comes within float32's resolution of the maximum."""
    mechanism, context = gumbel([0.9, 0.1]), torch.zeros(100, 0)
    draws = iter([torch.linspace(-3, 3, 100).unsqueeze(-1), torch.full((100, 2), 30.0)])
    monkeypatch.setattr(mechanism, "_gumbel", lambda shape, generator: next(draws))
    noise = mechanism.abduct(torch.ones(100, dtype=torch.long), context)
    assert (mechanism.predict(noise, context) == 1).all()


def test_abducted_noise_is_standard_gumbel_on_average():
    mechanism, size = gumbel([0.05, 0.25, 0.7]), 20_000
    context = torch.zeros(size, 0)
    noise = mechanism.abduct(mechanism.sample(context, generator(1)), context, generator(2)).detach()
    for column in noise.T:
        assert stats.kstest(column.numpy(), stats.gumbel_r.cdf).pvalue > 0.01
    assert (torch.corrcoef(noise.T) - torch.eye(3)).abs().max() < 0.03


def test_counterfactual_marginal_is_the_interventional_one_and_stable():
    mechanism, size = build(GumbelMax, "categorical", 3), 50_000
    before, after = contexts(2, 3)[0].expand(size, 3), contexts(2, 3)[1].expand(size, 3)
    x = mechanism.sample(before, generator(1))
    other = mechanism.predict(mechanism.abduct(x, before, generator(2)), after)
    p, q = mechanism.logits(before[0]).exp(), mechanism.logits(after[0]).exp()
    frequencies = torch.bincount(other, minlength=5) / size
    assert (frequencies - q).abs().max() < 4 * 0.5 / size**0.5
    changed = x != other
    ratio = q / p
    assert 0 < changed.float().mean() < 1 and (ratio[other[changed]] > ratio[x[changed]]).all()

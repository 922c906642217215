"""The laws of DESIGN.md for every image mechanism, prior and likelihood, grey and in colour; and what a mediator adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from datasets import Graph, Variable
from datasets.errors import UserError
from mechanisms.image.blocks import LatentBlock, Normal
from mechanisms.image.config import ImageConfig, Likelihood, Prior
from mechanisms.image.latent import LatentImageMechanism
from mechanisms.image.noise import LatentNoise
from mechanisms.image.registry import build, describe, image_mechanisms, load_image_mechanism
from mechanisms.runs.files import save
from mechanisms.training.noise import Noise
from tests.errors import naming

ROWS, SIZE = 4, 8
TINY = ImageConfig(encoder="4b1d4,1b1", decoder="1b2,4b1", widths="4:8,1:16", z_dim=3, embedding=12, components=2)
LATENT = [name for name, kind in image_mechanisms().items() if issubclass(kind, LatentImageMechanism)]
CASES = ["-".join(parts) for parts in product(LATENT, get_args(Prior), ("gaussian", "logistic_mixture"), ("1", "3"))]
PARENTS = (Variable("age", "real"), Variable("digit", "categorical", classes=3), Variable("width", "positive"))


def values(seed: int = 0, rows: int = ROWS) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"age": 40 + 10 * torch.randn(rows, generator=g), "digit": torch.randint(3, (rows,), generator=g),
            "width": torch.rand(rows, generator=g) + 0.5}


def pictures(channels: int) -> Tensor:
    """Grey levels of 0..255 as floats, a third of them black and a third white."""
    levels = torch.randint(-255, 511, (ROWS, channels, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).clamp(0, 255)
    return levels.float() / 255


def make(case: str, seed: int = 0, **changes: object) -> tuple[LatentImageMechanism, Tensor]:
    """A model some way from its initial parameters, and images for it."""
    name, prior, likelihood, channels = case.split("-")
    image = Variable("image", "image", ("age", "digit", "width"), shape=(int(channels), SIZE, SIZE))
    torch.manual_seed(seed)
    config = replace(TINY, prior=prior, likelihood=likelihood.replace("_", "-"), **changes)
    model = build(name, Graph([*PARENTS, image]).fitted(values(5, 200)), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((0.3 if "prior" in name else 0.05) * torch.randn_like(parameter))
    return model.eval(), pictures(int(channels))


def same_picture(left: Tensor, right: Tensor) -> bool:
    return torch.equal((left * 255).round(), (right * 255).round())


def with_mixing(model: LatentImageMechanism, mixing: float) -> LatentImageMechanism:
    model.config = replace(model.config, mixing=mixing)
    return model


every = pytest.mark.parametrize("case", CASES)
mediators = pytest.mark.parametrize("case", [c for c in CASES if "mediator" in c])
exogenous = pytest.mark.parametrize("case", [c for c in CASES if "exogenous" in c])


def test_cases_are_all_there_is():
    assert LATENT == ["hvae", "vae"]
    assert {case.split("-")[2].replace("_", "-") for case in CASES} == set(get_args(Likelihood))


# ---------------------------------------------------------------------------------------------------- the laws
@every
@pytest.mark.parametrize("seed", [None, 3], ids=["mean", "draw"])
def test_predict_inverts_abduct(case, seed):
    """For every effect and every mixing: where the parents stay what they were, nothing changes."""
    model, images = make(case)
    noise = model.abduct(images, values(), seed and Noise(seed))
    for mixing, effect in product((0.0, 0.3, 1.0) if model.mediator else (1.0,), ("total", "direct", "indirect")):
        again = with_mixing(model, mixing).predict(noise, values(), effect=effect)
        assert again.shape == images.shape and same_picture(again, images), (mixing, effect)


def test_files_from_before_an_option_take_its_default(tmp_path):
    model, images = make("hvae-exogenous-gaussian-1")
    state = describe(model)
    for name in ("prior", "mixing", "likelihood", "components"):
        del state["config"][name]
    save(tmp_path / "mechanism.pt", {**state, "weights": model.state_dict()})
    other = load_image_mechanism(tmp_path / "mechanism.pt")
    assert torch.equal(other.abduct(images, values()).residual, model.abduct(images, values()).residual)


# ---------------------------------------------------------------------------------------------------- several draws
def recorded(model: LatentImageMechanism) -> list[Tensor]:
    """Standard normals for three draws of every level, draw-major."""
    return [torch.randn(3 * ROWS, model.config.z_dim, r, r, generator=torch.Generator().manual_seed(k)) for k, r in enumerate(model.levels)]


def replay(tape: list[Tensor], part: slice = slice(None)) -> Callable[..., Tensor]:
    source = iter(tape)

    def draw(*shape: int) -> Tensor:
        found = next(source)[part]
        assert found.shape == shape
        return found

    return draw


@every
def test_many_draws_take_one_pass_of_the_encoder(case):
    """K draws in one batch are K abductions with the same noise; draw k of image b is row k·B + b."""
    model, images = make(case)
    passes = []
    model.stem.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    tape = recorded(model)
    together = model.abduct(images, values(), replay(tape), draws=3)
    assert passes == [ROWS] and len(together) == 3 * ROWS
    after = values(1)
    answers = model.predict(together, {name: value.repeat(3) for name, value in after.items()})
    for k in range(3):
        rows = slice(k * ROWS, (k + 1) * ROWS)
        alone, part = model.abduct(images, values(), replay(tape, rows)), together.rows(rows)
        for left, right in zip((*part.latents, part.residual, *part.factual.values, part.factual.parents),
                               (*alone.latents, alone.residual, *alone.factual.values, alone.factual.parents), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(answers[rows], model.predict(alone, after), rtol=1e-3, atol=1e-3)
    assert not torch.equal(together.latents[0][:ROWS], together.latents[0][ROWS:2 * ROWS])
    assert same_picture(model.predict(together, {name: value.repeat(3) for name, value in values().items()}), images.repeat(3, 1, 1, 1))
    with pytest.raises(UserError, match=naming("draws=0 1")):
        model.abduct(images, values(), Noise(0), draws=0)


@every
def test_noise_is_cut_and_joined_along_rows(case):
    model, images = make(case)
    for noise in (model.abduct(images, values(), Noise(0)), model.draw_noise(ROWS, Noise(0))):
        order = torch.tensor([3, 0, 2])
        assert len(noise.rows(order)) == 3 and torch.equal(noise.rows(order).latents[-1], noise.latents[-1][order])
        joined = LatentNoise.cat([noise.rows(slice(0, 2)), noise.rows(slice(2, None))])
        torch.testing.assert_close(model.predict(joined, values(1)), model.predict(noise, values(1)), rtol=0, atol=0)
    with pytest.raises(UserError, match=naming("abducted drawn")):
        LatentNoise.cat([model.abduct(images, values()), noise])


# ---------------------------------------------------------------------------------------------------- priors
def test_divergence_of_normals():
    g = torch.Generator().manual_seed(0)
    q, p = (Normal(torch.randn(50, generator=g), torch.randn(50, generator=g)) for _ in range(2))
    exact = torch.distributions.kl_divergence(*(torch.distributions.Normal(n.loc, n.log_scale.exp()) for n in (q, p)))
    torch.testing.assert_close(q.divergence(p), exact)
    torch.testing.assert_close(p.standardize(p.place(q.loc)), q.loc)


@every
def test_rate_is_the_divergence_to_the_prior(case):
    """The KL of every level in closed form by torch, its prior as seen on the way down."""
    model, images = make(case)
    seen: list[tuple[Normal, Normal]] = []
    for level in (m for m in model.modules() if isinstance(m, LatentBlock)):
        def spy(h, activation, embedding, level=level, posterior=level.posterior):
            seen.append((posterior(h, activation, embedding), level.prior(h, embedding)))
            return seen[-1][0]

        level.posterior = spy
    terms = model(dict(values(), image=images), Noise(4))
    assert len(seen) == len(model.levels)
    exact = 0
    for q, p in seen:
        assert ("mediator" in case) == (p.loc.numel() > 1)
        q, p = (torch.distributions.Normal(n.loc, n.log_scale.exp()) for n in (q, p))
        exact = exact + torch.distributions.kl_divergence(q, p).sum((1, 2, 3))
    torch.testing.assert_close(terms["rate"], exact, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms["free_energy"], terms["rate"] + terms["distortion"])


@mediators
def test_a_learned_prior_starts_at_the_standard_normal(case):
    name, prior, likelihood, channels = case.split("-")
    torch.manual_seed(0)
    model = build(name, make(case)[0].graph, replace(TINY, prior=prior))
    level = model.decoder[0][0]
    start = level.prior(torch.randn(2, 16, 1, 1), torch.randn(2, 12))
    assert start.loc.shape == (2, 3, 1, 1) and not start.loc.any() and not start.log_scale.any()


@every
def test_latents_are_standard_normal_noise(case):
    """ε of draws is what was drawn; ε of an abduction makes the posterior's values again when it goes down alone."""
    model, images = make(case)
    drawn = model.draw_noise(400, Noise(0))
    for z, r in zip(drawn.latents, model.levels, strict=True):
        assert z.shape == (400, 3, r, r) and abs(z.mean()) < 0.15 and abs(z.std() - 1) < 0.1
    assert drawn.residual.shape == (400, *images.shape[1:]) and drawn.factual is None
    abducted = model.abduct(images, values(), Noise(1))
    encoded = abducted.factual.parents
    remade = model._act(replace(abducted, factual=None), encoded)[1]
    for z, value in zip(abducted.factual.values or abducted.latents, remade, strict=True):
        torch.testing.assert_close(z, value, rtol=1e-4, atol=1e-4)
    moved = [not torch.allclose(e, z, atol=1e-3) for e, z in zip(abducted.latents, remade, strict=True)]
    assert all(moved) if "mediator" in case else not any(moved)


# ---------------------------------------------------------------------------------------------------- effects
@exogenous
def test_exogenous_latents_act_directly_only(case):
    model, images = make(case)
    noise = model.abduct(images, values())
    total, direct, indirect = (model.predict(noise, values(1), effect=effect) for effect in ("total", "direct", "indirect"))
    assert torch.equal(total, direct) and not same_picture(total, images) and same_picture(indirect, images)


@mediators
def test_mixing_nothing_keeps_the_latents(case):
    model, images = make(case)
    noise = with_mixing(model, 0.0).abduct(images, values(), Noise(0))
    assert all(torch.equal(a, b) for a, b in zip(model._act(noise, noise.factual.parents.flip(0))[1], noise.factual.values, strict=True))
    total, direct, indirect = (model.predict(noise, values(1), effect=effect) for effect in ("total", "direct", "indirect"))
    assert torch.equal(total, direct) and not same_picture(total, images) and same_picture(indirect, images)


@mediators
def test_mixing_all_is_the_counterfactual_of_the_mediator(case):
    """π = 1: the latents are what their noise makes under the new parents, whatever they were."""
    model, images = make(case)
    noise = with_mixing(model, 1.0).abduct(images, values(), Noise(0))
    recomputed = model.predict(LatentNoise(noise.latents, noise.residual), values(1))
    torch.testing.assert_close(model.predict(noise, values(1)), recomputed, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.predict(noise, values(1)), model.predict(noise, values(1)))  # nothing is drawn on the way


@mediators
def test_priors_see_the_mixed_levels_above_them(case):
    model, images = make(case)
    noise = with_mixing(model, 0.3).abduct(images, values(), Noise(0))
    after = model.encode(values(1), ROWS)
    mixed, given = [], iter(zip(noise.latents, noise.factual.values, strict=True))

    def by_hand(level: LatentBlock, h: Tensor, embedding: Tensor, resolution: int) -> Tensor:
        e, z = next(given)
        prior = level.prior(h, embedding)  # h carries the levels above, as they were chosen here
        mixed.append(0.7 * z + 0.3 * (prior.loc + prior.log_scale.exp() * e))
        return mixed[-1]

    model._descend(after, by_hand)
    for ours, exact in zip(model._act(noise, after)[1], mixed, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


@mediators
def test_effects_take_their_own_paths(case):
    """With the direct path cut, total = indirect and nothing is left of direct; with the indirect one cut, the reverse."""
    effects = ("total", "direct", "indirect")
    model, images = make(case)
    noise = model.abduct(images, values())
    worlds = [images, *(model.predict(noise, values(1), effect=effect) for effect in effects)]
    assert not any(same_picture(a, b) for a, b in combinations(worlds, 2))

    def cut(model: LatentImageMechanism, modules: list[nn.Module]) -> list[Tensor]:
        with torch.no_grad():
            for module in modules:
                module.weight.zero_()
        noise = model.abduct(images, values())
        return [model.predict(noise, values(1), effect=effect) for effect in effects]

    model, _ = make(case)
    modulations = [m for name, m in model.decoder.named_modules() if name.endswith("modulation")]
    total, direct, indirect = cut(model, [*modulations, *(m for m in model.readout.modules() if isinstance(m, nn.Linear))])
    assert same_picture(direct, images) and not same_picture(total, images) and torch.equal(total, indirect)
    model, _ = make(case)
    total, direct, indirect = cut(model, [m for name, m in model.decoder.named_modules() if name.endswith("prior_out")])
    assert same_picture(indirect, images) and not same_picture(total, images)
    torch.testing.assert_close(total, direct, rtol=1e-4, atol=1e-4)


@every
def test_effects_that_cannot_be_had(case):
    model, images = make(case)
    drawn = model.draw_noise(ROWS, Noise(0))
    for effect in ("direct", "indirect"):
        with pytest.raises(UserError, match=naming(effect)):
            model.predict(drawn, values(), effect=effect)
    with pytest.raises(UserError, match=naming("effect='mixed' total direct indirect")):
        model.predict(drawn, values(), effect="mixed")


# ---------------------------------------------------------------------------------------------------- configurations
@pytest.mark.parametrize("changes, message", [
    ({"prior": "posterior"}, "--prior posterior exogenous mediator"),
    ({"likelihood": "laplace"}, "--likelihood laplace gaussian logistic-mixture"),
    ({"mixing": 1.01}, "--mixing 1.01 [0, 1]"), ({"mixing": -0.1}, "--mixing -0.1"),
    ({"mixing": float("nan")}, "--mixing nan"),
    ({"components": 0}, "--components 0"), ({"z_dim": 0}, "--z-dim 0"),
    ({"beta": -1.0}, "--beta -1.0"),
    ({"free_bits": float("nan")}, "--free-bits nan"),
])
@pytest.mark.parametrize("name", LATENT)
def test_configurations_that_make_no_sense(name, changes, message):
    with pytest.raises(UserError, match=naming(message)):
        build(name, make("vae-exogenous-gaussian-1")[0].graph, replace(TINY, **changes))

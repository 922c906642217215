"""The laws of DESIGN.md for every image mechanism: all that are registered, docs/my_mechanism.py, and many configurations of the VAEs."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from datasets import Graph, SchemaError, Variable
from datasets.errors import UserError
from mechanisms.image.base import Effect, ImageMechanism
from mechanisms.image.config import PRESETS, Likelihood, Prior
from mechanisms.image.latent import LatentImageMechanism
from mechanisms.image.registry import build, describe, image_mechanisms, load_image_mechanism
from mechanisms.runs.files import save
from mechanisms.training.noise import Noise

MINE = f"{Path(__file__).resolve().parents[3] / 'docs' / 'my_mechanism.py'}:Pixelwise"
ROWS = 5
SMALL = {"z_dim": 3, "embedding": 12, "bases": 2}
TINY = {**SMALL, "encoder": "8b1d2,4b1,1b1", "decoder": "1b2,4b1,8b1", "widths": "8:8,4:12,1:16"}
FLAT = {**SMALL, "encoder": "4b1d4,1b1", "decoder": "1b2,4b1", "widths": "4:8,1:16", "components": 2}


@dataclass(frozen=True)
class Case:
    """A mechanism with some of its settings, and the images that it is of."""

    name: str
    channels: int = 1
    size: int = 8
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {f"{Path(name).stem if '/' in name else name}-{colour}": Case(name, channels)
         for name in (*image_mechanisms(), MINE) for colour, channels in (("grey", 1), ("rgb", 3))}
CASES |= {
    "tiny-grey-16": Case("hvae", 1, 16, TINY), "tiny-rgb-16": Case("hvae", 3, 16, TINY),
    "folded-grey-28": Case("hvae", 1, 28, {**SMALL, "widths": "14:8,7:8,1:8"}),
    "folded-rgb-32": Case("hvae", 3, 32, {**SMALL, "widths": "16:8,8:8,4:8,1:8"}),
    "pixels-grey-12": Case("hvae", 1, 12, {**SMALL, "widths": "12:8,6:8,3:8,1:8", "patch": 1}),
    "one-level-rgb-4": Case("hvae", 3, 4, SMALL),
    "cpu-grey-32": Case("hvae", 1, 32, PRESETS["cpu"]), "reference-grey-32": Case("hvae", 1, 32, PRESETS["reference"]),
}
CASES |= {f"{name}-{prior}-{likelihood}-{channels}": Case(name, channels, 8, {**FLAT, "prior": prior, "likelihood": likelihood})
          for name, kind in image_mechanisms().items() if issubclass(kind, LatentImageMechanism)
          for prior, likelihood, channels in product(get_args(Prior), get_args(Likelihood), (1, 3))}
every = pytest.mark.parametrize("case", CASES)
PARENTS = (Variable("age", "real"), Variable("digit", "categorical", classes=3), Variable("width", "positive"))


def values(seed: int = 0, rows: int = ROWS) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"age": 40 + 10 * torch.randn(rows, generator=g), "digit": torch.randint(3, (rows,), generator=g),
            "width": torch.rand(rows, generator=g) + 0.5}


def make(name: str, spread: float = 0.05, seed: int = 0) -> tuple[ImageMechanism, Tensor]:
    """A model ``spread`` away from its initial parameters, and images of grey levels, a third black and a third white."""
    case = CASES[name]
    shape = (case.channels, case.size, case.size)
    graph = Graph([*PARENTS, Variable("image", "image", ("age", "digit", "width"), shape=shape)]).fitted(values(5, 200))
    torch.manual_seed(seed)
    model = build(case.name, graph, settings=case.settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    levels = torch.randint(-255, 511, (ROWS, *shape), generator=torch.Generator().manual_seed(0)).clamp(0, 255)
    return model.eval(), levels.float() / 255


def same_picture(left: Tensor, right: Tensor) -> bool:
    return torch.equal((left * 255).round(), (right * 255).round())


# ---------------------------------------------------------------------------------------------------- law 1
@every
@pytest.mark.parametrize("seed", [None, 3], ids=["expected", "draw"])
def test_predict_inverts_abduct(case, seed):
    """For every effect: where the parents stay what they were, nothing changes."""
    model, images = make(case)
    noise = model.abduct(images, values(), None if seed is None else Noise(seed))
    for effect in model.effects:
        again = model.predict(noise, values(), effect=effect)
        assert again.shape == images.shape and (again - images).abs().max() < 1e-3 / 2 and same_picture(again, images), effect


@every
def test_predict_inverts_abduct_in_half_precision(case):
    model, images = make(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = model.predict(model.abduct(images, values()), values())
    if issubclass(type(model), LatentImageMechanism):  # which says where it needs every digit
        assert again.dtype == torch.float32 and same_picture(again, images)
    assert (again.float() - images).abs().max() < 0.05


@every
def test_temperature_scales_what_is_not_explained(case):
    model, images = make(case)
    if not model.tempered:
        pytest.skip("no pixel residual")
    noise = model.abduct(images, values())
    bare, half = model.predict(noise, values(), temperature=0.0), model.predict(noise, values(), temperature=0.5)
    assert (bare - images).abs().mean() > 0.05 and bare.min() >= 0 and bare.max() <= 1
    assert not torch.equal(half, bare) and not torch.equal(half, images)


@every
def test_effects_that_cannot_be_had(case):
    model, images = make(case)
    noise = model.abduct(images, values())
    for effect in {*get_args(Effect), "mixed"} - set(model.effects):
        with pytest.raises(UserError, match=f"effect='{effect}' cannot be had from .*; valid are {', '.join(model.effects)}"):
            model.predict(noise, values(), effect=effect)


# ---------------------------------------------------------------------------------------------------- noise
@every
def test_noise_that_is_drawn_never_sees_a_parent(case):
    model, images = make(case)
    drawn, again, other = (model.draw_noise(ROWS, Noise(seed)) for seed in (0, 0, 1))
    left, right = (model.predict(drawn, values(seed)) for seed in (0, 1))
    assert len(drawn) == ROWS and left.shape == images.shape and left.min() >= 0 and left.max() <= 1 and not torch.equal(left, right)
    assert torch.equal(left, model.predict(again, values())) and not torch.equal(left, model.predict(other, values()))


@every
def test_abduction_draws_only_when_asked(case):
    model, images = make(case)
    state = torch.random.get_rng_state()
    expected, again = (model.predict(model.abduct(images, values()), values(1)) for _ in range(2))
    first, same = (model.predict(model.abduct(images, values(), Noise(0)), values(1)) for _ in range(2))
    assert torch.equal(expected, again) and torch.equal(first, same) and torch.equal(state, torch.random.get_rng_state())


@every
def test_draws_are_rows_draw_by_draw(case):
    model, images = make(case)
    noise = model.abduct(images, values(), Noise(0), draws=3)
    assert len(noise) == 3 * ROWS
    again = model.predict(noise, {name: value.repeat(3) for name, value in values().items()})
    assert same_picture(again, images.repeat(3, 1, 1, 1))


@every
def test_noise_is_cut_and_joined_along_rows(case):
    model, images = make(case)
    for noise in (model.abduct(images, values(), Noise(0)), model.draw_noise(ROWS, Noise(0))):
        order, kind = torch.tensor([3, 0, 2]), type(noise)
        assert len(noise.rows(order)) == 3 and len(noise.rows(slice(1, None))) == ROWS - 1
        joined = kind.cat([noise.rows(slice(0, 2)), noise.rows(slice(2, None))])
        assert torch.equal(model.predict(joined, values(1)), model.predict(noise, values(1)))
        picked = model.predict(noise.rows(order), {name: value[order] for name, value in values(1).items()})
        torch.testing.assert_close(picked, model.predict(noise, values(1))[order], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- parents and rows
@every
def test_parents_come_by_name(case):
    model, images = make(case)
    more = {"unused": torch.zeros(1), **dict(reversed(values().items()))}
    left, right = (model.predict(model.abduct(images, given), values(1)) for given in (values(), more))
    assert torch.equal(left, right)
    with pytest.raises(SchemaError, match="missing the parent 'digit'; got age, width"):
        model.abduct(images, {name: value for name, value in values().items() if name != "digit"})


@every
def test_rows_do_not_mix(case):
    model, images = make(case)
    few, changed = ({name: value[:3] for name, value in given.items()} for given in (values(), values(1)))
    whole = model.predict(model.abduct(images, values()), values(1))
    torch.testing.assert_close(whole[:3], model.predict(model.abduct(images[:3], few), changed), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- laws 2 and 3
@every
def test_terms_are_finite_whatever_the_image(case):
    """Of an untrained model too, which needs at most some 30 nats for each subpixel, or says that it has no bound."""
    model, images = make(case, spread=0.0)
    for x, progress in product((images, torch.zeros_like(images), torch.ones_like(images)), (0.0, 1.0)):
        terms = model({**values(), "image": x}, Noise(0), progress)
        assert "loss" in terms and all(term.shape == (ROWS,) and term.isfinite().all() for term in terms.values())
        if model.bounded and case.split("-")[0] in image_mechanisms() and issubclass(type(model), LatentImageMechanism):
            assert (terms["free_energy"] / images[0].numel() < 30).all() and (terms["rate"] >= 0).all()
    if not model.bounded:
        with pytest.raises(UserError, match="needs a bound of log p"):
            model.free_energy(images, values(), Noise(0))
        return
    energy, noise = model.bound_and_noise({**values(), "image": images}, Noise(2))
    torch.testing.assert_close(energy, model.free_energy(images, values(), Noise(2)), rtol=1e-4, atol=1e-2)
    assert same_picture(model.predict(noise, values()), images)


@every
def test_gradients_reach_every_parameter(case):
    model, images = make(case, spread=0.0 if CASES[case].settings.get("prior") is None else 0.1)
    model.train()({**values(), "image": images}, Noise(0))["loss"].mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@every
def test_counterfactuals_are_differentiable(case):
    """In weights, images and continuous parents: what counterfactual training needs."""
    model, images = make(case)
    if not model.differentiable:
        pytest.skip("not differentiable")
    images, before, after = (images * 0.8 + 0.1).requires_grad_(), values(), values(1)
    for parents in (before, after):
        for name in ("age", "width"):
            parents[name].requires_grad_()
    model.predict(model.abduct(images, before, Noise(0)), after).square().sum().backward()
    for tensor in (images, before["age"], after["age"], before["width"], after["width"]):
        assert tensor.grad.isfinite().all() and tensor.grad.any()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@every
def test_saved_and_loaded_gives_the_same(case, tmp_path):
    model, images = make(case)
    save(tmp_path / "mechanism.pt", {**describe(model), "weights": model.state_dict()})
    other = load_image_mechanism(tmp_path / "mechanism.pt")
    assert other.name == model.name and describe(other) == describe(model) and not other.training
    assert other.graph.fingerprint() == model.graph.fingerprint()
    noise, same = (m.abduct(images, values(), Noise(1)) for m in (model, other))
    assert torch.equal(model.predict(noise, values(1)), other.predict(same, values(1)))
    left, right = (m({**values(), "image": images}, Noise(2)) for m in (model, other))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@every
def test_state_survives_a_buffer(case):
    """Weights alone, as in a checkpoint of a training: no memory format gets lost on the way."""
    (model, images), file = make(case), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other, _ = make(case, seed=1)
    before, after = (m.predict(m.abduct(images, values()), values(1)) for m in (other, model))
    assert not torch.equal(before, after)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.predict(other.abduct(images, values()), values(1)), after)

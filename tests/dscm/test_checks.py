"""A model with an image mechanism that offers as little as the abstract class allows: what it lacks is refused by name or left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import pytest
import torch
from torch import Tensor, nn

from datasets.errors import UserError
from datasets.schema import Graph, Variable
from dscm.finetuning.config import FinetuneConfig
from dscm.finetuning.objective import CounterfactualTraining
from dscm.model import DSCM
from mechanisms.image.base import ImageMechanism, ImageNoise
from pgm.scm import AttributeSCM

GRAPH = Graph([Variable("dose", "real"), Variable("image", "image", ("dose",), shape=(1, 4, 4))])
OBSERVED = {"dose": torch.tensor([0.0, 1.0, -1.0]), "image": torch.full((3, 1, 4, 4), 0.5)}


class Offset(ImageNoise):
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, index: Tensor | slice) -> Self:
        return type(self)(self.pixels[index])

    @classmethod
    def cat(cls, noises: Iterable[Self]) -> Self:
        return cls(torch.cat([noise.pixels for noise in noises]))


class Brightness(ImageMechanism):
    """x = u + dose/10: no likelihood, no residual, no gradients."""

    name = "brightness"
    bounded = tempered = differentiable = False

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, batch, noise, progress=1.0):
        raise NotImplementedError

    @torch.no_grad()
    def abduct(self, images, parents, draw=None, draws=1) -> Offset:
        return Offset((images - self.shift(parents)).repeat(draws, 1, 1, 1))

    @torch.no_grad()
    def predict(self, noise, parents, temperature=1.0, effect="total") -> Tensor:
        return noise.pixels + self.shift(parents)

    def draw_noise(self, rows, draw) -> Offset:
        return Offset(draw(rows, 1, 4, 4) * 0.01 + 0.5)

    def shift(self, parents) -> Tensor:
        return (self.weight * parents["dose"])[:, None, None, None]


@pytest.fixture(scope="module")
def model() -> DSCM:
    return DSCM(AttributeSCM(GRAPH), Brightness(GRAPH))


def test_answers_need_neither_likelihood_nor_residual(model):
    answer = model.counterfactual(OBSERVED, {"dose": 2.0}, draws=2)
    expected = OBSERVED["image"] + (0.1 * (2.0 - OBSERVED["dose"]))[:, None, None, None]
    torch.testing.assert_close(answer.image, expected)
    torch.testing.assert_close(model.regenerate(OBSERVED), OBSERVED["image"])
    assert model.sample(2)["image"].shape == (2, 1, 4, 4)


def test_without_a_bound_the_image_has_no_log_prob(model):
    assert set(model.log_prob(OBSERVED)) == {"dose"} and not model.capabilities.log_prob


@pytest.mark.parametrize("given, said", [({"temperature": 0.5}, "temperature=0.5: the image mechanism 'brightness' has no pixel residual"),
                                         ({"effect": "direct"}, "effect='direct' cannot be had from the image mechanism 'brightness'")])
def test_what_would_be_ignored_is_refused(model, given, said):
    noise = model.abduct(OBSERVED)
    for ask in (lambda: model.counterfactual(OBSERVED, {"dose": 2.0}, **given), lambda: model.counterfactual(OBSERVED, {}, **given),
                lambda: model.predict(noise, {"dose": 2.0}, **given)):
        with pytest.raises(UserError, match=said):
            ask()
    assert not model.capabilities.temperature and model.capabilities.effects == ("total",)


def test_counterfactual_training_is_refused(model):
    with pytest.raises(UserError, match="counterfactual training needs a bound of log p"):
        CounterfactualTraining(model.image, model.attributes, nn.Identity(), FinetuneConfig())


def test_without_gradients_counterfactual_training_is_refused(model, monkeypatch):
    monkeypatch.setattr(Brightness, "bounded", True)
    with pytest.raises(UserError, match="needs gradients .*'brightness'"):
        CounterfactualTraining(model.image, model.attributes, nn.Identity(), FinetuneConfig())

"""Collinear parents: found in the training split, and kept out of the features."""

import pytest
import torch

from datasets.schema import Graph, Variable, encode_parents
from mechanisms.image.config import ImageConfig
from mechanisms.image.hvae import HVAE


def graph(spread):
    random = torch.Generator().manual_seed(0)
    cause = torch.randn(500, generator=random)
    effect = cause + spread * torch.randn(500, generator=random)
    variables = (Variable("cause", "real"), Variable("effect", "real", ("cause",)),
                 Variable("image", "image", ("cause", "effect"), shape=(1, 16, 16)))
    return Graph(variables).fitted({"cause": cause, "effect": effect})


def test_explained_variance_is_the_regression_s():
    for spread in (0.1, 1.0):
        assert abs(graph(spread)["effect"].statistics.explained - 1 / (1 + spread**2)) < 0.05
    assert graph(1.0)["cause"].statistics.explained == 0


def test_classes_are_explained_as_far_as_they_are_told():
    """Of K equally frequent classes that are copied with probability s, else drawn: R² of the indicators is s²."""
    random = torch.Generator().manual_seed(0)
    cause, other = torch.randint(4, (2, 20_000), generator=random)
    for share in (0.0, 0.5, 0.9, 1.0):
        effect = torch.where(torch.rand(len(cause), generator=random) < share, cause, other)
        middle = Variable("middle", "categorical", ("cause",), classes=4)  # no cause of the image, yet it carries the cause's influence
        variables = (Variable("cause", "categorical", classes=4), middle, Variable("effect", "categorical", ("middle",), classes=4),
                     Variable("image", "image", ("cause", "effect"), shape=(1, 16, 16)))
        fitted = Graph(variables).fitted({"cause": cause, "middle": effect, "effect": effect})
        assert abs(fitted["effect"].statistics.explained - share**2) < 0.02
        assert fitted["cause"].statistics.explained == 0


def test_causes_that_do_not_touch_the_image_explain_nothing():
    known = graph(0.1)
    loose = Graph((known["cause"], known["effect"], Variable("image", "image", ("effect",), shape=(1, 16, 16))))
    values = {"cause": torch.linspace(0, 1, 50), "effect": torch.linspace(0, 2, 50)}
    assert loose.fitted(values)["effect"].statistics.explained == 0


@pytest.mark.parametrize("prior", ["exogenous", "mediator"])
def test_a_collinear_effect_acts_linearly_and_its_cause_does_not(prior):
    torch.manual_seed(0)
    model = HVAE(graph(0.1), ImageConfig(encoder="4b1", decoder="4b1", widths="4:8", patch=4, prior=prior))
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # a learned prior starts out without parents
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert [v.name for v in model.acting] == ["cause"]
    noise = model.draw_noise(1, torch.randn)

    def loc(cause, effect):
        values = {"cause": torch.tensor([cause]), "effect": torch.tensor([effect])}
        encoded = encode_parents(model.parents, values, 1)
        with torch.no_grad():
            return model.readout(model._act(noise, encoded)[0], encoded).loc

    def bend(line):
        return (line(0.0) + line(2.0) - 2 * line(1.0)).abs().max()

    assert (loc(0.5, 2.0) - loc(0.5, 0.0)).abs().max() > 1e-3
    assert bend(lambda effect: loc(0.5, effect)) < 1e-5 < bend(lambda cause: loc(cause, 0.5))


def test_the_threshold_can_be_switched_off():
    model = HVAE(graph(0.1), ImageConfig(encoder="4b1", decoder="4b1", widths="4:8", patch=4, collinear=1.0))
    assert [v.name for v in model.acting] == ["cause", "effect"]

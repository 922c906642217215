"""Counterfactual losses: closed forms, their minima, labels that cannot be sure enough, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from experiments.algorithms.losses import COUNTERFACTUAL_LOSSES, counterfactual_loss
from mechanisms.runs.files import RunError
from tests.errors import naming

WIDTH = {"double": 2}


def case(name: str, classes: int, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(rows, classes * WIDTH.get(name, 1), generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", COUNTERFACTUAL_LOSSES)
def test_losses_are_those_of_the_paper(name, classes):
    logits, labels = case(name, classes)
    found, p = counterfactual_loss(name, logits, labels, classes).detach(), logits.detach().softmax(1)
    for i, y in enumerate(labels.tolist()):
        others = [k for k in range(classes) if k != y]
        expected = {"negative": lambda i=i, y=y: -math.log(1 - p[i, y]), "uniform": lambda i=i: -sum(map(math.log, p[i])) / classes,
                    "uniform_others": lambda i=i, o=others: -sum(math.log(p[i, k]) for k in o) / len(o),
                    "double": lambda i=i, y=y: -math.log(p[i, classes + y])}[name]()
        assert found[i].item() == pytest.approx(expected, abs=1e-10)
    assert torch.autograd.gradcheck(lambda values: counterfactual_loss(name, values, labels, classes), logits)


def test_two_classes_leave_one_other():
    logits, labels = case("negative", 2)
    swapped = F.cross_entropy(logits, 1 - labels, reduction="none")
    for name in ("negative", "uniform_others"):
        torch.testing.assert_close(counterfactual_loss(name, logits, labels, 2), swapped)


@pytest.mark.parametrize("name, least", [("negative", 0.0), ("uniform", math.log(4)), ("uniform_others", math.log(3)), ("double", 0.0)])
def test_the_least_value_is_that_of_the_wanted_prediction(name, least):
    labels, logits = torch.arange(4), torch.zeros(4, 8 if name == "double" else 4, dtype=torch.float64)
    if name in ("negative", "uniform_others"):
        logits[labels, labels] = -60
    if name == "double":
        logits[labels, 4 + labels] = 60
    at_best = counterfactual_loss(name, logits, labels, 4)
    assert at_best.tolist() == pytest.approx([least] * 4, abs=1e-9)
    noise = torch.randn(4, logits.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (counterfactual_loss(name, logits + noise, labels, 4) >= at_best - 1e-12).all()


def test_certainty_is_no_infinity():
    """Where p_y rounds to 1, the loss is l_y minus the others', and its slope still 1; where it rounds to 0, both are 0."""
    logits = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0], [3e4, -3e4, 0.0]], requires_grad=True)
    found = counterfactual_loss("negative", logits, torch.zeros(3, dtype=torch.long), 3)
    assert found.tolist() == pytest.approx([200 - math.log(2), 0.0, 3e4])
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert slope[0].tolist() == pytest.approx([1, -0.5, -0.5]) and slope[1].abs().max() < 1e-30 and slope.isfinite().all()


def test_half_precision_is_widened():
    logits, labels = torch.tensor([[9.0, -9.0]], dtype=torch.bfloat16), torch.tensor([0])
    assert counterfactual_loss("negative", logits, labels, 2).item() == pytest.approx(18, abs=1e-6)


def test_bad_input():
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(RunError, match=naming("'sum' negative uniform uniform_others double")):
        counterfactual_loss("sum", logits, labels, 3)
    with pytest.raises(RunError, match=naming("'double' 3 (B, 6) (2, 3)")):
        counterfactual_loss("double", logits, labels, 3)

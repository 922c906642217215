"""Commutativity: two interventions, one after the other, must lead to one image whichever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from dscm.metrics.score import Metric, Score, named
from dscm.metrics.truth import image_error, inner

if TYPE_CHECKING:
    from dscm.evaluation.answers import Evaluator
    from dscm.evaluation.inputs import MetricInputs
    from dscm.evaluation.questions import Question

RANK = 40
METRICS = named(
    Metric("commutativity_l1", "L1 between do(a) then do(b), and do(b) then do(a), of 255", "grey levels", "lower",
           "a model that never changes anything scores 0", label="commutativity of {intervention}"),
    Metric("commutativity_joint_l1", "L1 between two interventions one after the other and both at once, of 255", "grey levels", "lower",
           "each order abducts twice, so composition's error is part of it"),
)


class Commutativity(NamedTuple):
    """L1 of 255, each ``(B,)``: between the orders, and of each order to the joint intervention."""

    orders: Tensor
    first: Tensor
    second: Tensor


def commutativity(a_then_b: Tensor, b_then_a: Tensor, joint: Tensor) -> Commutativity:
    """``d(f_b∘f_a, f_a∘f_b)`` and the distances of both to ``f_{a,b}``, of images ``(B, C, H, W)`` in [0, 1].

    Where a causes b, ``do(b)`` then ``do(a)`` is another question than ``do(a)`` then ``do(b)`` unless the second keeps
    what the first has set: ask ``do(a = a*, b = b*)`` of the image of the first.
    """
    return Commutativity(image_error(a_then_b, b_then_a), image_error(a_then_b, joint), image_error(b_then_a, joint))


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every two questions."""
    if len(inputs.cases) < 2:
        inputs.missing["commutativity_*"] = "it takes two interventions, and only one can be asked"
    for one, other in combinations(inputs.cases, 2):
        with inputs.missing_if_refused(f"commutativity_* under do({one.question.variable}, {other.question.variable})"):
            yield from list(commutativity_scores(inputs.evaluator, one.question, other.question, inputs.border))


def commutativity_scores(evaluator: Evaluator, one: Question, other: Question, border: int) -> Iterator[Score]:
    """L1 between two orders of two interventions, and between each order and both at once."""
    images = evaluator.in_either_order(one, other)
    distances = commutativity(*(inner(x, border) for x in images))
    about = {"intervention": f"do({one.variable}, {other.variable})", "floors": {"identity": 0.0, "truth": 0.0}}
    yield METRICS["commutativity_l1"].score(distances.orders, settings={"border": border}, **about)
    for first, errors in ((one, distances.first), (other, distances.second)):
        yield METRICS["commutativity_joint_l1"].score(errors, settings={"border": border, "first": first.name}, **about)

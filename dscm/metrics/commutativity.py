"""Commutativity: two interventions, one after the other, must lead to one image whichever comes first."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dscm.metrics.score import Metric
from dscm.metrics.truth import image_error

METRICS = (
    Metric("commutativity_l1", "L1 between do(a) then do(b), and do(b) then do(a), of 255", "grey levels", "lower",
           "a model that never changes anything scores 0"),
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

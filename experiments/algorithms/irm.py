"""Invariant risk minimisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from experiments.algorithms.base import Batch
from experiments.algorithms.groups import mean_of_present, means_by, members
from experiments.algorithms.penalised import Penalised, PenaltySettings


@dataclass(frozen=True)
class IRMSettings(PenaltySettings):
    """Of IRM."""

    unbiased: bool = False
    """Multiply the derivatives on two halves of an environment's rows instead of squaring the one on all: right on average
    for small batches too, and sometimes negative."""


class IRM(Penalised):
    """IRMv1 (Arjovsky et al. 2019): P = mean_e (d/dw R_e(w·f) at w = 1)².

    For cross-entropy the derivative has the closed form ``mean_i(Σ_k softmax(l_i)_k·l_ik − l_i,y_i)``, so that one backward
    pass does. A square of a mean over few rows is too large by its variance; ``unbiased`` multiplies the means over every second
    row of an environment and over the others, which are independent draws (appendix D of the paper).
    """

    name = "irm"
    title = "IRM"
    assumes = "one classifier is optimal in every environment at once, and environments differ enough to tell"
    settings = IRMSettings

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        slopes, environments, count = slope(logits, batch["label"]), batch["environment"], self.sizes.environments
        if not self.options.unbiased:
            means, _ = means_by(slopes, environments, count)
            return mean_of_present(means.square(), counts)
        belongs = members(environments, count)
        half = ((belongs.cumsum(0) * belongs).sum(1) % 2).long()  # by turns within each environment, however these alternate
        means, halves = means_by(slopes, 2 * environments + half, 2 * count)
        first, second = means.reshape(count, 2).unbind(1)
        return mean_of_present(first * second, halves.reshape(count, 2).amin(1))


def slope(logits: Tensor, labels: Tensor) -> Tensor:
    """d/dw of −log softmax(w·l)_y at w = 1: ``Σ_k softmax(l)_k·l_k − l_y``, ``(B,)``."""
    return (logits.softmax(-1) * logits).sum(-1) - logits.gather(-1, labels[:, None])[:, 0]

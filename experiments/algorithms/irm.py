"""Invariant risk minimisation."""

from __future__ import annotations

from torch import Tensor

from experiments.algorithms.base import Batch
from experiments.algorithms.groups import mean_of_present, means_by
from experiments.algorithms.penalised import HalvedSettings, Penalised, means_of_halves


class IRM(Penalised):
    """IRMv1 (Arjovsky et al. 2019): P = mean_e (d/dw R_e(w·f) at w = 1)².

    For cross-entropy the derivative has the closed form ``mean_i(Σ_k softmax(l_i)_k·l_ik − l_i,y_i)``, so that one backward
    pass does. A square of a mean over few rows is too large by its variance; so the means over two halves of an environment's rows are
    multiplied (appendix D of the paper, and DomainBed), unless ``unbiased`` is off, as in recipes of full batches.
    """

    name = "irm"
    title = "IRM"
    assumes = "one classifier is optimal in every environment at once, and environments differ enough to tell"
    settings = HalvedSettings

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        slopes, environments, count = slope(logits, batch["label"]), batch["environment"], self.sizes.environments
        if not self.options.unbiased:
            means, _ = means_by(slopes, environments, count)
            return mean_of_present(means.square(), counts)
        first, second, rows = means_of_halves(slopes, environments, count)
        return mean_of_present(first * second, rows)


def slope(logits: Tensor, labels: Tensor) -> Tensor:
    """d/dw of −log softmax(w·l)_y at w = 1: ``Σ_k softmax(l)_k·l_k − l_y``, ``(B,)``."""
    return (logits.softmax(-1) * logits).sum(-1) - logits.gather(-1, labels[:, None])[:, 0]

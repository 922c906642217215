"""Risk extrapolation."""

from __future__ import annotations

from torch import Tensor

from experiments.algorithms.base import Batch
from experiments.algorithms.groups import mean_of_present
from experiments.algorithms.penalised import Penalised


class VREx(Penalised):
    """V-REx (Krueger et al. 2021, *Out-of-distribution generalization via risk extrapolation*): P = Var_e(R_e), the mean square
    distance of the environments' risks to their mean.
    """

    name = "vrex"
    title = "V-REx"
    assumes = "the right classifier has the same risk in every environment, so labels are equally noisy in all"

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        return mean_of_present((risks - mean_of_present(risks, counts)).square(), counts)

"""Risk extrapolation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from datasets.ranges import NotNegative
from experiments.algorithms.base import Batch, cross_entropy
from experiments.algorithms.groups import mean_of_present
from experiments.algorithms.penalised import HalvedSettings, Penalised, means_of_halves


@dataclass(frozen=True)
class VRExSettings(HalvedSettings):
    """Of V-REx."""

    penalty: NotNegative[float] = 10.0
    """Weight λ of the penalty once it is annealed."""


class VREx(Penalised):
    """V-REx (Krueger et al. 2021, *Out-of-distribution generalization via risk extrapolation*): P = Var_e(R_e), the mean square
    distance of the environments' risks to their mean; estimated as mean_e (R_e − R)·(R'_e − R') on two halves of each environment's
    rows, since on few rows the variance of risks is that of their noise too, unless ``unbiased`` is off.
    """

    name = "vrex"
    title = "V-REx"
    assumes = "the right classifier has the same risk in every environment, so labels are equally noisy in all"
    settings = VRExSettings

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        if self.options.unbiased:
            first, second, rows = means_of_halves(cross_entropy(logits, batch["label"]), batch["environment"], self.sizes.environments)
            return mean_of_present((first - mean_of_present(first, rows)) * (second - mean_of_present(second, rows)), rows)
        return mean_of_present((risks - mean_of_present(risks, counts)).square(), counts)

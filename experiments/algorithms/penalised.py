"""What all penalties share: the risk is a mean over environments, the penalty grows in, the loss is scaled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from datasets.ranges import NotNegative, Share
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy
from experiments.algorithms.groups import before, mean_of_present, means_by, members


@dataclass(frozen=True)
class PenaltySettings:
    """How a penalty joins the risk."""

    penalty: NotNegative[float] = 100.0
    """Weight λ of the penalty once it is annealed."""
    anneal: Share[float] = 0.1
    """Share of the training before which the weight is 1 instead."""
    rescale: bool = True
    """Divide the loss by λ where λ > 1, so that gradients keep their size."""
    reset: bool = True
    """Begin the optimiser anew when the weight jumps: its moments are of another objective."""


@dataclass(frozen=True)
class HalvedSettings(PenaltySettings):
    """Of penalties that are products of two means over an environment's rows."""

    unbiased: bool = True
    """Take the two means over two halves of an environment's rows instead of squaring that over all: right on average for batches of
    any size, and sometimes negative. A square is too large by the mean's own variance, which only batches of the whole split can ignore."""


class Penalised(Algorithm):
    """(R + l2·Σ‖w‖² + λ(t)·P) / max(1, λ(t)), R the mean of the environments' risks; λ(t) = 1 before ``anneal``, then ``penalty``.

    A subclass defines the penalty P. Environments that the batch has no rows of are left out.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"environments"})
    settings: ClassVar[type] = PenaltySettings
    reads_features: ClassVar[bool] = True
    stackable: ClassVar[bool] = True

    def restarts(self) -> tuple[float, ...]:
        return (self.options.anneal,) if self.options.reset else ()

    def weight(self, progress: float) -> float:
        """λ(t)."""
        return self.options.penalty if progress >= self.options.anneal else 1.0

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        features = (batch["features"] if "features" in batch else self.network.features(batch["image"])).float()
        logits = self.network.logits(features)
        losses = cross_entropy(logits, batch["label"])
        risks, counts = means_by(losses, batch["environment"], self.sizes.environments)
        risk = mean_of_present(risks, counts)
        with torch.autocast(features.device.type, enabled=False):
            penalty = self.penalty(features, logits, batch, risks, counts)
        weight = self.weight(progress)
        loss = risk + self.penalty_of_weights() + weight * penalty
        return {"loss": loss / max(1.0, weight) if self.options.rescale else loss, "risk": risk, "penalty": penalty}

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        """P, a scalar.

        Args:
            features, logits: ``(B, F)`` and ``(B, K)``.
            risks, counts: mean cross-entropy and number of rows of each environment over all processes, ``(E,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define penalty(features, logits, batch, risks, counts)")


def means_of_halves(values: Tensor, environments: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``(count,)`` of every second row ``(B,)`` of each environment and of its others, and the smaller half's rows.

    The rows of a batch are independent draws, so that the expectation of a product of two such means is that of their factors.
    """
    belongs = members(environments, count)
    turns = belongs.cumsum(0) + before(belongs.sum(0))  # within each environment, however these alternate, over all processes
    half = ((turns * belongs).sum(1) % 2).long()
    means, rows = means_by(values, 2 * environments + half, 2 * count)
    first, second = means.reshape(count, 2).unbind(1)
    return first, second, rows.reshape(count, 2).amin(1)

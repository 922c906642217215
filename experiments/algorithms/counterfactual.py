"""Classifiers that see what images would have looked like under other values of the spurious attributes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.ranges import NotNegative, Share
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy


@dataclass(frozen=True)
class AugmentationSettings:
    """Of counterfactual augmentation."""

    share: Share[float] = 0.5
    """Weight of the counterfactuals' risk; the observed images have the rest."""


@dataclass(frozen=True)
class ConsistencySettings:
    """Of counterfactual consistency."""

    weight: NotNegative[float] = 10.0
    """Weight of the divergence of predictions on an image and its counterfactual."""


class CounterfactualAugmentation(Algorithm):
    """(1 − s)·CE(f(x), y) + s·CE(f(x*), y), x* the image under do(spurious ~ its marginal), with the label kept.

    Trained on x and x* alike, spurious attributes tell nothing of the label on x*; as after Sauer and Geiger 2021,
    *Counterfactual generative networks*, with the counterfactuals of a learned model or of the true process.
    """

    name = "cf-augmentation"
    title = "Counterfactual augmentation"
    assumes = "the model's counterfactuals are right and keep what causes the label"
    needs = frozenset({"counterfactuals"})
    settings = AugmentationSettings

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        seen, imagined = both(self, batch, noise)
        observed, counterfactual = cross_entropy(seen, batch["label"]), cross_entropy(imagined, batch["label"])
        loss = (1 - self.options.share) * observed + self.options.share * counterfactual
        return {"loss": loss + self.penalty_of_weights(), "risk": observed, "risk_counterfactual": counterfactual}


class CounterfactualConsistency(Algorithm):
    """CE(f(x), y) + weight·JS(f(x), f(x*)), JS the Jensen–Shannon divergence of the two predictions in nats.

    Labels are used on observed images alone: predictions must not change with the spurious attributes (counterfactual
    invariance, Veitch et al. 2021).
    """

    name = "cf-consistency"
    title = "Counterfactual consistency"
    assumes = "the model's counterfactuals are right and keep what causes the label"
    needs = frozenset({"counterfactuals"})
    settings = ConsistencySettings

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        seen, imagined = both(self, batch, noise)
        observed, apart = cross_entropy(seen, batch["label"]), jensen_shannon(seen, imagined)
        return {"loss": observed + self.options.weight * apart + self.penalty_of_weights(), "risk": observed, "divergence": apart}


def both(algorithm: Algorithm, batch: Batch, noise: Draw) -> tuple[Tensor, Tensor]:
    """Logits of the images and of one random counterfactual of each, ``(B, K)``, in one pass of the network."""
    return algorithm.network(torch.cat([batch["image"], drawn(batch, noise)])).chunk(2)


def drawn(batch: Batch, noise: Draw, column: str = "counterfactual") -> Tensor:
    """One random counterfactual of each image, float in [0, 1], ``(B, C, H, W)``."""
    made = batch[column]
    which = noise(*made.shape[:2]).argmax(1)
    return made[torch.arange(len(made), device=made.device), which].float() / 255


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """½·KL(p‖m) + ½·KL(q‖m), m = ½(p + q), of two predictions given by logits; in nats, ``(B,)``, at most log 2."""
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    mean = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - mean) + q.exp() * (q - mean)).sum(-1)

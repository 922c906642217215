"""Free energy: an upper bound of −log p(x | pa), comparable between images of any size in bits per dimension."""

from __future__ import annotations

import math

from torch import Tensor

from dscm.metrics.score import Metric

METRICS = (
    Metric("free_energy", "upper bound of −log p(x | parents) of the observed images", "bits/dim", "lower",
           "not the goal: a better bound may come with worse counterfactuals; bounds of discrete and continuous likelihoods differ"),
)


def bits_per_dimension(nats: Tensor, dimensions: int) -> Tensor:
    """``nats / (D·log 2)``, ``(B,)``, of nats per image and D = C·H·W values an image."""
    return nats / (dimensions * math.log(2))

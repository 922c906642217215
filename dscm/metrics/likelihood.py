"""Free energy: an upper bound of −log p(x | pa), comparable between images of any size in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from dscm.metrics.score import Metric, Score, named

if TYPE_CHECKING:
    from dscm.evaluation.inputs import MetricInputs

PART, RANK = "free_energy", 80
METRICS = named(
    Metric("free_energy", "upper bound of −log p(x | parents) of the observed images", "bits/dim", "lower",
           "not the goal: a better bound may come with worse counterfactuals; bounds of discrete and continuous likelihoods differ",
           label="free energy"),
)


def bits_per_dimension(nats: Tensor, dimensions: int) -> Tensor:
    """``nats / (D·log 2)``, ``(B,)``, of nats per image and D = C·H·W values an image."""
    return nats / (dimensions * math.log(2))


def scores(inputs: MetricInputs) -> Iterator[Score]:
    """In bits and, as training logs it, in nats per dimension; of a model that bounds the likelihood."""
    if not inputs.model.capabilities.log_prob:
        inputs.missing["free_energy"] = "the model has no log_prob(observed) of the image"
        return
    nats, dimensions = inputs.evaluator.free_energy(), inputs.observed["image"][0].numel()
    yield METRICS["free_energy"].score(bits_per_dimension(nats, dimensions))
    yield METRICS["free_energy"].score(nats / dimensions, unit="nats/dim", settings={"logarithm": "natural"})

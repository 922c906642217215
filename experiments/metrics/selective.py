"""Selective classification: answer only where one is sure enough, and say how often that is and how right one is then.

Asgari et al. 2022, *MaskTune*, §3.2: the networks before and after fine-tuning on masked images look at different evidence,
so that both being sure of one class is a reason to trust it: p = softmax(p_before · p_after). The threshold on the largest
p is the one that gives the wanted coverage on validation images; what it gives on test images is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from datasets.schema import SchemaError


@dataclass(frozen=True)
class Coverage:
    """What one threshold gives.

    Attributes:
        wanted: share of images that are to be answered.
        threshold: on confidence, from validation images.
        answered: share of test images that are.
        accuracy: of the answers on these, in [0, 1]; None if there are none.
        error: its standard error over images.
        balanced: accuracy as the mean over classes, in [0, 1]; None if a class is never answered.
    """

    wanted: float
    threshold: float
    answered: float
    accuracy: float | None
    error: float | None
    balanced: float | None


def agreed(before: Tensor, after: Tensor) -> Tensor:
    """softmax(p_before · p_after) of two networks' logits ``(B, K)``, products class by class; float64 ``(B, K)``, so that the
    many images that both are nearly certain of still have an order."""
    return (before.double().softmax(1) * after.double().softmax(1)).softmax(1)


def threshold_for(confidence: Tensor, coverage: float) -> float:
    """The greatest threshold t so that at least the share ``coverage`` of ``confidence`` ``(N,)`` is ≥ t.

    Raises:
        SchemaError: for a coverage outside (0, 1], or no values.
    """
    if not 0 < coverage <= 1:
        raise SchemaError(f"coverage {coverage:g} must lie in (0, 1]: the share of images that are answered")
    if not len(confidence):
        raise SchemaError("a threshold needs validation images; there are none")
    if coverage == 1:
        return 0.0  # all of validation, and so all of any images
    least = math.ceil(round(coverage * len(confidence), 9))
    return float(confidence.double().sort(descending=True).values[max(1, least) - 1])


def coverage_table(valid: Tensor, test: Tensor, labels: Tensor, wanted: Sequence[float]) -> list[Coverage]:
    """One row for each coverage that is wanted.

    Args:
        valid, test: probabilities ``(N, K)`` of validation and of test images, see :func:`agreed`.
        labels: of test images, ``(N,)``.

    Raises:
        SchemaError: see :func:`threshold_for`.
    """
    confidence, right = test.max(1).values.double(), test.argmax(1) == labels
    rows = []
    for share in wanted:
        threshold = threshold_for(valid.max(1).values, share)
        answered = confidence >= threshold
        count = int(answered.sum())
        accuracy = float(right[answered].double().mean()) if count else None
        error = math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else None
        classes = [right[answered & (labels == k)] for k in labels.unique().tolist()]
        balanced = sum(float(part.double().mean()) for part in classes) / len(classes) if all(len(part) for part in classes) else None
        rows.append(Coverage(share, threshold, float(answered.double().mean()), accuracy, error, balanced))
    return rows

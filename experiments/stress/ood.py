"""Out of distribution: does a classifier notice that what it is asked about is no longer in the image?

The same images with and without their foreground; a classifier that looks at it should be less sure without. Its score is
the maximum softmax probability (Hendrycks & Gimpel 2017, §2), and the images *with* a foreground are the positives.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from experiments.augmenters.registry import augmenter
from experiments.metrics.classification import area, average_precision, log_odds
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded

MEANINGS: Mapping[str, tuple[str, str]] = {  # metric → which is better, what it means
    "ood_auroc": ("higher", "probability that an image is answered with more confidence than one without its foreground"),
    "ood_aupr": ("higher", "average precision of the confidence as a score for having a foreground; of as many images without"),
    "ood_fpr95": ("lower", "share of images without foreground that are answered, where the confidence asked for is that which 95 % of "
                           "images reach"),
}
TITLES = {"ood_auroc": "no foreground: AUROC", "ood_aupr": "no foreground: AUPR", "ood_fpr95": "no foreground: FPR at 95 %"}


def without_foreground(images: Tensor, masks: Tensor, labels: Tensor, fill: str = "mean", *keys: int) -> Tensor:
    """The images with their foreground's bounding rectangle filled, see :mod:`experiments.augmenters.counterfactual`.

    Args:
        keys: of which what is random is a function.
    """
    return augmenter("counterfactual", fill)(images, masks, labels, seeded(*keys))


def confidence(logits: Tensor) -> Tensor:
    """``log p/(1 − p)`` of the greatest probability p, ``(B,)`` float64: in its order, also where p is rounded to 1."""
    return log_odds(logits).amax(1)


def ood_scores(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """AUROC, AUPR and the share of outsiders that pass where 95 % of insiders do, of confidences ``(N,)`` and ``(M,)``.

    Raises:
        RunError: without images on either side.
    """
    if not len(inside) or not len(outside):
        raise RunError(f"{len(inside)} images in and {len(outside)} out of the distribution; there must be some of both")
    both = torch.cat([inside, outside])
    positive = torch.arange(len(both)) < len(inside)
    passing = inside.sort(descending=True).values[-(-95 * len(inside) // 100) - 1]
    return {"ood_auroc": area(both, positive), "ood_aupr": float(average_precision(both[None], positive[None])),
            "ood_fpr95": float((outside >= passing).double().mean())}

"""How good a classifier is on one set of images: shares of right answers, ranking, calibration, stability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score

BINS = 15  # of the calibration error
FEWEST = 10  # images that a group needs for its accuracy to count
COVERED = 0.8  # of all images must lie in such groups, or the worst of them is not the worst

MEANINGS: Mapping[str, tuple[str, str]] = {  # metric → which is better, what it means
    "accuracy": ("higher", "share of images whose label is predicted"),
    "balanced_accuracy": ("higher", "mean over classes of the share of their images that are recognised"),
    "macro_f1": ("higher", "mean over classes of F1, 2·hits / (images of the class + answers of the class)"),
    "worst_group": ("higher", f"accuracy in the worst group of label and spurious attributes, of those with {FEWEST} images or more"),
    "auroc": ("higher", "probability that an image of a class gets a higher score for it than one of another class, mean over classes"),
    "ece": ("lower", f"calibration error: weighted mean distance of confidence from accuracy over {BINS} bins of confidence"),
    "flip_rate": ("lower", "share of images whose predicted class is not that of the same image as observed"),
    "drop": ("lower", "how much accuracy is lost against the same images as observed"),
}


@dataclass(frozen=True)
class Measured:
    """The figures of one classifier on one set of images.

    Attributes:
        values: metric → value, of those in :data:`MEANINGS` that could be computed.
        group: the worst group's number; None where the groups that count hold less than :data:`COVERED` of the images.
        absent: classes without an image in the sample, over which nothing is averaged.
        small: groups with some images, but fewer than :data:`FEWEST`, which cannot be the worst.
        group_images: how many images the worst group has; 0 where there is none.
    """

    values: Mapping[str, float]
    group: int | None
    absent: tuple[int, ...]
    small: tuple[int, ...]
    group_images: int = 0


def measure(logits: Tensor, labels: Tensor, groups: Tensor | None = None, observed: Tensor | None = None) -> Measured:
    """All figures of one classifier.

    Args:
        logits: ``(B, K)``.
        labels: ``(B,)`` true classes.
        groups: ``(B,)`` numbers of the rows' groups, if there are any.
        observed: ``(B, K)`` its logits for the same rows as observed, for flip rate and drop.
    """
    logits, right = logits.double(), logits.argmax(1) == labels
    values = {"accuracy": mean(right), "balanced_accuracy": balanced_accuracy(logits.argmax(1), labels),
              "macro_f1": macro_f1(logits.argmax(1), labels, logits.shape[1]), "ece": calibration_error(logits.softmax(1), labels)}
    if (ranked := auroc(log_odds(logits), labels)) is not None:
        values["auroc"] = ranked
    worst, small = None, ()
    if groups is not None:
        accuracy, small = group_accuracies(right, groups)
        if len(accuracy) and mean(torch.isin(groups, torch.tensor(list(accuracy)))) >= COVERED:
            worst = min(accuracy, key=accuracy.__getitem__)
            values["worst_group"] = accuracy[worst]
    if observed is not None:
        values["flip_rate"] = mean(logits.argmax(1) != observed.argmax(1))
        values["drop"] = mean(observed.argmax(1) == labels) - values["accuracy"]
    counts = torch.bincount(labels, minlength=logits.shape[1])
    absent = tuple((counts == 0).nonzero().flatten().tolist())
    return Measured(values, worst, absent, small, 0 if worst is None else int((groups == worst).sum()))


def mean(right: Tensor) -> float:
    return float(right.double().mean())


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """``mean_k P(predicted = k | label = k)`` over the classes that the sample has."""
    return sum(mean(predicted[labels == k] == k) for k in labels.unique()) / len(labels.unique())


def macro_f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """``mean_k 2·hits_k / (images_k + answers_k)`` over the classes that are there or are answered; always one answer: a low figure."""
    return float(multiclass_f1_score(predicted, labels, classes, average="macro"))


def group_accuracies(right: Tensor, groups: Tensor) -> tuple[dict[int, float], tuple[int, ...]]:
    """Accuracy of each group with at least :data:`FEWEST` images, and the groups with fewer (but some)."""
    counts = {int(g): int((groups == g).sum()) for g in groups.unique()}
    large = {g: mean(right[groups == g]) for g, count in counts.items() if count >= FEWEST}
    return large, tuple(g for g in counts if g not in large)


def log_odds(logits: Tensor) -> Tensor:
    """``l_k − log Σ_{j≠k} exp(l_j)``, ``(B, K)`` float64: in the order of the probability of k, also where that rounds to 0 or 1."""
    ordered, place = logits.double().sort(1)  # sums in this order, so that images with the same logits in other places tie
    ordered = ordered - ordered[:, -1:]
    shares = ordered.log_softmax(1)
    odds = shares - torch.log1p(-shares.exp())  # exact enough for all but the largest, whose share is at most one half
    odds[:, -1] = -ordered[:, :-1].logsumexp(1)
    return torch.empty_like(odds).scatter(1, place, odds)


def auroc(scores: Tensor, labels: Tensor) -> float | None:
    """Macro mean of :func:`area`, each class against the rest.

    Classes that the sample lacks are left out; None where it has a single class.
    """
    present = labels.unique()
    if len(present) < 2:
        return None
    return sum(area(scores[:, k], labels == k) for k in present) / len(present)


def area(scores: Tensor, positive: Tensor) -> float:
    """``P(score of a positive > of a negative) + P(equal)/2``: the area under the curve of hits against false alarms."""
    rank = torch.from_numpy(rankdata(scores.numpy()))  # ties share the mean of their ranks
    n, m = int(positive.sum()), int((~positive).sum())
    return (float(rank[positive].sum()) - n * (n + 1) / 2) / (n * m)  # Mann and Whitney's U


def average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """The area under precision against recall, ``(B,)``, of each row of scores ``(B, N)``; positives bool ``(B, N)``, at least one a row.

    ``Σ_t (R_t − R_{t−1})·P_t`` over the distinct scores t from the greatest down, at which recall and precision are R and P; so
    scores that are all equal have the share of positives.
    """
    ordered, place = scores.sort(1, descending=True)
    hits = positive.gather(1, place)
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1  # of the entries with the same score
    precision = hits.cumsum(1).gather(1, last).double() / (last + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """``Σ_b n_b/n · |accuracy_b − confidence_b|`` over equal bins of the largest probability (Guo et al. 2017, eq. 3).

    Bins are (0, 1/15], (1/15, 2/15], … as published. torchmetrics has [0, 1/15), … and therefore counts images whose
    probability is rounded to 1 as a sixteenth bin of their own, which changes the figure of every network that is sure.
    """
    confidence, predicted = probabilities.max(1)
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, which, (predicted == labels).double() - confidence.double())
    return float(gap.abs().sum()) / len(labels)


def majority(training: Tensor, labels: Tensor, classes: int, groups: Tensor | None = None) -> Measured:
    """The figures of always answering training's most frequent class, with its classes' shares as confidence.

    Args:
        training: ``(N,)`` labels of the training split.
        labels, groups: ``(B,)`` of the images that are asked about.
    """
    shares = torch.bincount(training, minlength=classes).double() / len(training)
    logits = shares.clamp_min(1e-12).log().expand(len(labels), -1)
    return measure(logits, labels, groups, logits)

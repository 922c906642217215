"""How well probabilities of classes say which class it is: accuracy, F1 and the area under the ROC curve."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score

from datasets.schema import SchemaError


class ClassScores(NamedTuple):
    """``correct`` (B,) 0 or 1; ``f1`` and ``auroc`` over the classes that occur; ``absent``: those that do not.

    ``auroc`` is None where only one class occurs: there is no rest to tell it from.
    """

    correct: Tensor
    f1: float
    auroc: float | None
    absent: tuple[int, ...]


def class_scores(probabilities: Tensor, target: Tensor) -> ClassScores:
    """Accuracy, macro F1 and one-vs-rest macro AUROC of ``probabilities`` ``(B, K)`` for classes ``target`` ``(B,)``.

    A class that no target has gets no vote in F1 and AUROC: its recall is 0/0. Predicting it still costs the recall of
    the class that was meant.

    Raises:
        SchemaError: for shapes that do not belong together or a class outside 0..K−1.
    """
    if probabilities.ndim != 2 or target.shape != probabilities.shape[:1] or not len(target):
        raise SchemaError(f"probabilities {tuple(probabilities.shape)} and classes {tuple(target.shape)}: expected (B, K) and (B,), B ≥ 1")
    classes = probabilities.shape[1]
    strange = target[(target < 0) | (target >= classes)]
    if len(strange):
        raise SchemaError(f"class {int(strange[0])} is none of the {classes} classes 0..{classes - 1}")
    counts = torch.bincount(target, minlength=classes)
    occurs = counts > 0
    predicted = probabilities.argmax(1)
    f1 = multiclass_f1_score(predicted, target, classes, average="none")[occurs].mean()
    # torchmetrics counts a class without positives as 0, and warns; ask about those that have them
    if int(occurs.sum()) > 1:
        present = occurs.nonzero().flatten()
        areas = [multiclass_auroc(torch.stack([1 - p, p], 1), (target == k).long(), 2, average="none")[1]
                 for k, p in zip(present, probabilities.T[present], strict=True)]
        auroc = float(torch.stack(areas).mean())
    else:
        auroc = None
    return ClassScores((predicted == target).float(), float(f1), auroc, tuple((~occurs).nonzero().flatten().tolist()))

"""Accuracy in parts of a selection split, its groups and shifts, each as a mean over all of its rows.

:func:`mechanisms.training.loop.fit` logs means over all rows of a split; weights make them means over the rows that a term is about.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.base import Split
from experiments.metrics.classification import FEWEST


def part_weights(group: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Columns ``observed``, ``in_group`` and ``in_shift``, ``(N,)``: with these weights the mean over all N rows is that over the
    observed rows, over the observed rows of a row's group, and over the rows of a row's shift.

    Args:
        group: ``(N,)`` numbers of groups.
        shift: ``(N,)``, 0 as observed, else the number of the shift from 1.
    """
    total, observed = len(shift), shift == 0
    per_group, per_shift = torch.bincount(group[observed], minlength=1 + max(group.tolist(), default=-1)), torch.bincount(shift)
    return {"observed": observed.float() * total / observed.sum(), "in_shift": (~observed).float() * total / per_shift[shift],
            "in_group": observed.float() * total / per_group.clamp(min=1)[group]}


def worst_group(means: Mapping[str, float], split: Split) -> float:
    """The least accuracy of a group, of means that were taken on ``split``.

    Groups of fewer than :data:`experiments.metrics.classification.FEWEST` rows say nothing and are left out, unless all are such.
    """
    judged, _ = _large(split)
    return min(means[f"group_{g}"] for g in judged.nonzero().flatten().tolist())


def left_out(split: Split, groups: int) -> tuple[int, int]:
    """How many of the task's ``groups`` :func:`worst_group` leaves out, empty ones included, and how many observed rows these have."""
    judged, counts = _large(split)
    return groups - int(judged.sum()), int(counts[~judged].sum())


def _large(split: Split) -> tuple[Tensor, Tensor]:
    """Of each group up to the last that has observed rows: whether it is judged, and its rows."""
    counts = torch.bincount(split.attributes["group"][split.attributes["shift"] == 0])
    return counts >= min(FEWEST, int(counts.max())), counts

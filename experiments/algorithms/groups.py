"""Means over the rows of one environment, group, … of the batch of all processes.

A penalty is not linear in its rows: the square of a mean over one process's rows is larger, by the variance of that
mean, than the square of the mean over all. So sums and counts are added over processes first, differentiably: each
process then computes the same penalty, and averaging the gradients of processes gives the gradient of a single one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def everywhere(values: Tensor) -> Tensor:
    """Σ over processes; differentiable. Without processes, ``values``."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return values
    return _Sum.apply(values)


class _Sum(torch.autograd.Function):
    """Every process gets the sum, so every process's value has the gradients of all of them."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone().contiguous()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone().contiguous()
        distributed.all_reduce(total)
        return total


def before(values: Tensor) -> Tensor:
    """Σ over the processes before this one, whose rows come first in the batch; without gradient."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return torch.zeros_like(values)
    found = [torch.zeros_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, values.detach().contiguous())
    return sum(found[: distributed.get_rank()], torch.zeros_like(values))


def members(index: Tensor, count: int) -> Tensor:
    """``(B, count)``, 1 where a row's index is that of the column, else 0; float."""
    return (index[:, None] == torch.arange(count, device=index.device)).float()


def means_by(values: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means ``(count, …)`` of the rows ``(B, …)`` of each index ``(B,)``, and how many rows each has, ``(count,)``.

    Of an index without rows the mean is 0. In single precision.
    """
    with torch.autocast(values.device.type, enabled=False):
        belongs = members(index, count)
        counts = everywhere(belongs.sum(0))
        sums = everywhere(belongs.T @ values.float().flatten(1) if values.ndim > 1 else belongs.T @ values.float())
        means = sums / counts.clamp(min=1).reshape(-1, *[1] * (sums.ndim - 1))
        return means.reshape(count, *values.shape[1:]), counts


def mean_of_present(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of ``values`` ``(count,)`` over those that have rows; a scalar, 0 if none has."""
    present = (counts > 0).float()
    return (values * present).sum() / present.sum().clamp(min=1)

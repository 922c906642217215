"""What a training keeps beside its weights: averages, means of terms, its position, its log, a wish to stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn

from mechanisms.runs.files import MetricsLog, RunError

CHECKPOINT, WEIGHTS, METRICS, CONFIG = "checkpoint.pt", "mechanism.pt", "metrics.jsonl", "config.json"


class Average:
    """Exponential moving average of a model's parameters; young averages follow faster (t+1)/(t+10).

    Those without gradient stay as they are: they are their own average, in the same memory.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, parameters = decay, list(model.parameters())
        self.values = [p.detach().clone() if p.requires_grad else p.detach() for p in parameters]
        self.pairs = [(value, p) for value, p in zip(self.values, parameters, strict=True) if p.requires_grad]

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_([value for value, _ in self.pairs], [p.detach() for _, p in self.pairs], weight)

    def load(self, values: list[Tensor]) -> None:
        for mine, saved in zip(self.values, values, strict=True):
            mine.copy_(saved)

    @torch.no_grad()
    def restore(self) -> None:
        """Take the model back to the average."""
        for value, parameter in self.pairs:
            parameter.copy_(value)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and present weights, in place."""
        for value, parameter in self.pairs:
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    def __enter__(self) -> Self:
        self.swap()
        return self

    def __exit__(self, *_: object) -> None:
        self.swap()


class Remembered:
    """What a model remembers of batches beside its weights, in buffers: batch norm's statistics, running means, multipliers.

    A forward pass changes them before it is known whether its gradient is finite. Of a broken batch nothing may stay: a running
    mean that is once nan is so for ever, without a word while the weights go on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Before a batch."""
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """As before the batch."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.before)


@dataclass
class Position:
    """Where a training stands; all of it is checkpointed."""

    step: int = 0
    elapsed: float = 0.0
    norm: float = 0.0  # running gradient norm
    skipped: int = 0
    in_a_row: int = 0
    validated: int = 0
    best: float = math.inf
    waited: int = 0  # validations since the best one
    restarted: int = 0  # times that the optimiser has begun anew

    def gives_up(self, patience: int | None) -> bool:
        """Whether so many validations in a row were no better than the best."""
        return patience is not None and self.waited >= patience


class Meter:
    """Means of the training terms since the last row of the log."""

    def __init__(self, sums: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.sums = dict(sums or {})
        self.count = count

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.detach().float().mean()
        self.count += 1

    def flush(self) -> dict[str, float]:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Log:
    """``metrics.jsonl`` and, if asked for, TensorBoard events."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.rows = MetricsLog(folder / METRICS, step)
        self.board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise RunError("--tensorboard needs the tensorboard package: pip install tensorboard") from None
            self.board = SummaryWriter(folder)

    def write(self, row: Mapping[str, Any]) -> None:
        self.rows.write(row)
        if self.board:
            for part in ("train", "valid"):
                for name, value in row[part].items():
                    self.board.add_scalar(f"{part}/{name}", value, row["step"])
            self.board.flush()


class Stop(AbstractContextManager):
    """Turns Ctrl-C and SIGTERM into a request to stop after the present update; a second Ctrl-C stops at once."""

    def __enter__(self) -> Self:
        self.requested = False
        self._earlier = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._earlier[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: the caller's handling stays
                break
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

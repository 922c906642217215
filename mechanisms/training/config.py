"""How a command line asks for a training. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, NotNegative, Positive, Processes, Seed, check_ranges, within

Decay = within(0, 1, below=True)
Shift = within(0, 1024)  # pixels
Bins = within(1, 1000)  # of a spline


@dataclass(frozen=True)
class TrainingConfig:
    """Budget, optimisation and bookkeeping of one training."""

    epochs: Positive[float | None] = None
    """Budget in passes over the training split."""
    steps: Positive[int | None] = None
    """Budget in updates."""
    minutes: Positive[float | None] = None
    """Budget in wall-clock minutes; depends on the machine, so it does not resume bit for bit."""
    batch_size: AtLeastOne[int] = 64
    """Images (or rows) per update, over all processes together."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """adam couples its weight decay to the gradient; sgd has momentum beta1."""
    learning_rate: Positive[float] = 2e-3
    """Peak of the schedule."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """How the learning rate falls with progress; step: to a tenth at one half and again at three quarters."""
    warmup: NotNegative[int] = 30
    """Updates over which the learning rate rises."""
    weight_decay: NotNegative[float] = 0.01
    """Pull of the weights towards 0."""
    beta1: Decay[float] = 0.9
    """First-moment decay of Adam, momentum of SGD."""
    beta2: Decay[float] = 0.95
    """Second-moment decay of Adam."""
    clip: Positive[float] = 200.0
    """Gradient norms above this are scaled down to it."""
    skip: Positive[float] = 10.0
    """Updates whose gradient norm is this many times the running one, or not finite, are skipped."""
    ema: Decay[float] = 0.995
    """Decay of the averaged weights that are evaluated and kept."""
    validations: AtLeastOne[int] = 10
    """How many times in a training the validation split is looked at."""
    validation_rows: AtLeastOne[int] = 1000
    """How many of its rows each look takes."""
    keep: Literal["best", "last"] = "last"
    """Which averaged weights to keep: those best on validation, or the last."""
    patience: AtLeastOne[int | None] = None
    """So many validations in a row that were no better than the best end the training early; without it nothing does."""
    checkpoint_seconds: NotNegative[float] = 30.0
    """Time between checkpoints; any of them resumes to the same result."""
    workers: Processes[int] = 0
    """Processes that read images which do not fit in memory."""
    seed: Seed[int] = 0
    """Reproduces a run on a CPU bit for bit."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; auto takes bf16 where the hardware has it."""

    def or_budget(self, **budget: float) -> TrainingConfig:
        """This configuration if it has a budget, else the same with ``budget``: ``steps=…``, ``epochs=…`` or ``minutes=…``."""
        return replace(self, **budget) if self.epochs is self.steps is self.minutes is None else self

    def check(self) -> None:
        """Raises UserError for a budget or a number that makes no sense."""
        if sum(b is not None for b in (self.epochs, self.steps, self.minutes)) != 1:
            raise UserError("give exactly one budget: --epochs, --steps or --minutes")
        check_ranges(self)


@dataclass(frozen=True)
class RunOptions:
    """Where the results go."""

    run: Path = Path("runs/model")
    """Run folder: everything one model consists of lives here."""
    resume: bool = False
    """Continue the training that this folder holds."""
    overwrite: bool = False
    """Throw away the training that this folder holds and begin anew."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the tensorboard package)."""

"""The state of a training: all that a checkpoint holds, how it is judged, written, and taken up again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.runs.files import RunError, load, save, understanding
from mechanisms.training.config import TrainingConfig
from mechanisms.training.hooks import Hooks
from mechanisms.training.noise import Noise
from mechanisms.training.resume import BEGIN_ANEW
from mechanisms.training.state import CHECKPOINT, WEIGHTS, Average, Meter, Position

MILDER = "lower --learning-rate or raise --warmup"
_LARGEST = torch.finfo(torch.float32).max ** 0.5  # of a weight whose square is finite


class State:
    """Model, optimiser, averages, noise and position of one training in one folder.

    Attributes:
        kept: the part of the model that is written to ``mechanism.pt``.
        best: its weights at the best validation, where these are to be kept.
        selected: see :class:`mechanisms.training.hooks.Hooks`, ``rules``.
        good: step and weights of the last validation that was sound.
        healthy: whether the last validation was.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig, folder: Path, total: int | None,
                 description: Mapping[str, Any], hooks: Hooks, noise: Noise) -> None:
        self.model, self.optimizer, self.config, self.folder, self.total = model, optimizer, config, folder, total
        self.kept, self.description, self.hooks, self.noise = hooks.kept or model, dict(description), hooks, noise
        self.average, self.at, self.meter = Average(model, config.ema), Position(), Meter()
        self.best: dict[str, Tensor] | None = None
        self.selected: dict[str, dict[str, Any]] = {}
        self.good: dict[str, Any] = {}
        self.healthy = True
        self.saved = self.began = time.monotonic()

    # ------------------------------------------------------------------------------------------------ time
    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        return self.at.step / self.total if self.total else self.at.elapsed / (60 * self.config.minutes)

    @property
    def over(self) -> bool:
        """Whether the budget is spent, or validation has not become better for so long."""
        return self.progress >= 1 or self.at.gives_up(self.config.patience)

    def tick(self) -> tuple[float, bool]:
        """Take the time; progress, and whether a checkpoint is overdue."""
        now = time.monotonic()
        self.at.elapsed = now - self.began
        return self.progress, now - self.saved > self.config.checkpoint_seconds

    # ------------------------------------------------------------------------------------------------ checkpoints
    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written; the budget may have changed since."""
        with understanding(self.folder / CHECKPOINT, BEGIN_ANEW):
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average.load(saved["average"])
            self.at, self.best, self.selected = Position(**saved["position"]), saved["best"], saved.get("selected", {})
            self.noise.restore(saved["noise"], self.at.step)
            self.meter = Meter(**saved["meter"])
            self.at.validated = min(self.at.validated, int(self.progress * self.config.validations))
        self.began -= self.at.elapsed

    def write(self) -> None:
        """``checkpoint.pt``, then ``mechanism.pt``, each whole or not at all."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average.values,
                 "noise": self.noise.generator.get_state(), "position": asdict(self.at), "best": self.best, "selected": self.selected,
                 "meter": {"sums": self.meter.sums, "count": self.meter.count}}
        save(self.folder / CHECKPOINT, {"kind": "training", "config": asdict(self.config), "description": self.description, **state})
        with self.average:
            weights = self.best if self.best is not None else copy_state(self.kept)
        selected = {"selected": self.selected} if self.hooks.rules else {}
        save(self.folder / WEIGHTS, {**self.description, "weights": weights, "step": self.at.step, **selected})
        self.saved = time.monotonic()

    # ------------------------------------------------------------------------------------------------ judgement
    def judge(self, means: Mapping[str, float]) -> None:
        """Take a validation's means of terms in, while the model has the averaged weights that they are of."""
        self.at.waited += 1
        if (score := self.hooks.criterion(means)) < self.at.best:
            self.at.best, self.at.waited = score, 0
            self.best = copy_state(self.kept) if self.config.keep == "best" else None
        self.healthy = math.isfinite(means["loss"]) and self.sound()
        if self.healthy:
            self.good = {"step": self.at.step, "weights": copy_state(self.kept)}
        for name, rule in self.hooks.rules.items():
            if name not in self.selected or math.isnan(self.selected[name]["score"]) or rule(means) < self.selected[name]["score"]:
                self.selected[name] = {"step": self.at.step, "score": rule(means), "weights": copy_state(self.kept)}

    @torch.no_grad()
    def sound(self) -> bool:
        """Whether all weights and their averages are finite, and so small that their squares are too."""
        values = (*self.model.parameters(), *self.average.values)
        return all(bool((value.abs() < _LARGEST).all()) for value in values if value.is_floating_point())

    def check(self) -> None:
        """Raises RunError at the end of a training that has diverged."""
        if not self.sound():
            raise RunError(f"training has diverged by step {self.at.step}: weights are not finite, or not their squares; {MILDER}")
        if not self.healthy:
            raise RunError(f"training has diverged by step {self.at.step}: the loss on validation is not finite; {MILDER}")

    def diverged(self, why: RunError, writes: bool) -> RunError:
        """``why``, with the folder and what is left there; what came after the last sound weights may be finite and broken."""
        kept = ". No state was sound, so none is kept"
        if self.good and writes and not (self.folder / WEIGHTS).exists():
            save(self.folder / WEIGHTS, {**self.description, **self.good, "diverged": self.at.step})
            kept = f". Weights of step {self.good['step']}, the last that validation found sound, are in {self.folder / WEIGHTS}"
        elif (self.folder / CHECKPOINT).exists():
            kept = ". The last checkpoint is kept"
        return RunError(f"{self.folder}: {why}{kept}")


def take_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of its file; raises RunError where they do not fit."""
    state = load(path)
    with understanding(path, BEGIN_ANEW):
        module.load_state_dict(state["weights"])


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all that training changes; parameters without gradient are shared, so that a file has them once."""
    fixed = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {name: value.detach() if name in fixed else value.detach().clone() for name, value in model.state_dict().items()}

"""What a training's folder holds already: nothing, something to resume, or a training whose budget is spent."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mechanisms.runs.files import RunError, load, understanding
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.state import CHECKPOINT, WEIGHTS, Position

BEGIN_ANEW = "Restore a copy of it, or begin anew with --overwrite"
_READABLE = 40  # letters of a value in a message
_MAY_CHANGE = {"epochs", "steps", "minutes", "patience", "device", "workers", "checkpoint_seconds"}


def find_training(folder: Path, config: TrainingConfig, total: int | None, description: Mapping[str, Any],
                  options: RunOptions) -> dict[str, Any] | None:
    """The checkpoint to continue from, or nothing to begin anew; refuses to overwrite or to mix trainings.

    Args:
        total: updates that the budget amounts to; None where it is a time.

    Raises:
        RunError: without ``--resume`` or ``--overwrite`` in a folder that holds one; on resume, see :func:`check_same`.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        if options.resume:
            print(f"nothing to resume in {folder}: beginning anew", file=sys.stderr)
        return None
    if options.overwrite:
        return None
    if not options.resume:
        raise RunError(f"{folder} already holds a training; --resume continues it, --overwrite begins anew")
    state = load(path, "training")
    check_same(state, path, config, total, description)
    return state


def finished_training(folder: Path, config: TrainingConfig, total: int | None) -> dict[str, Any] | None:
    """The checkpoint of a training whose budget is spent, last validation and weights included; None if there is no such one."""
    if not (folder / CHECKPOINT).exists() or not (folder / WEIGHTS).exists():
        return None
    state = load(folder / CHECKPOINT, "training")
    with understanding(folder / CHECKPOINT, BEGIN_ANEW):
        at = Position(**state["position"])
        spent = at.step >= total if total else at.elapsed >= 60 * config.minutes
    if not at.gives_up(config.patience) and not (spent and at.validated >= config.validations):
        return None
    return state if load(folder / WEIGHTS).get("step") == at.step else None


def check_same(state: Mapping[str, Any], path: Path, config: TrainingConfig, total: int | None, description: Mapping[str, Any]) -> None:
    """Raises RunError for the checkpoint ``path`` of a training that is not the one that is asked for, see :func:`difference`."""
    with understanding(path, BEGIN_ANEW):
        why = difference(state, config, total, description)
    if why:
        raise RunError(f"{path} {why}; choose another --run, or --overwrite")


def difference(state: Mapping[str, Any], config: TrainingConfig, total: int | None, description: Mapping[str, Any]) -> str:
    """Why a checkpoint is not of the training that is asked for; empty if it is.

    It may be of another model, of another configuration (budget, device and the like may change), or of more updates than
    are asked for: the weights that it had on its way are gone.
    """
    if state["description"] != dict(description):
        keys = [k for k in {**description, **state["description"]} if state["description"].get(k) != description.get(k)]
        told = "; ".join(filter(None, (_apart(key, state["description"].get(key), description.get(key)) for key in keys)))
        return f"is of another model (its {', '.join(keys)} differ{': ' * bool(told)}{told})"
    then, now = {**asdict(TrainingConfig()), **state["config"]}, asdict(config)  # a field that is younger than the file has its default
    if changed := [f"{k} {then[k]} → {now[k]}" for k in now if k not in _MAY_CHANGE and then[k] != now[k]]:
        return f"cannot be resumed with another configuration: {'; '.join(changed)}"
    step = state["position"]["step"]
    return f"is already trained for {step:,} updates, and {total:,} are asked for" if total and step > total else ""


def _apart(key: str, there: Any, asked: Any) -> str:
    """``key: a there, b asked`` of what differs within two descriptions; what is too long to be read is left out."""
    if isinstance(there, Mapping) and isinstance(asked, Mapping):
        parts = [_apart(k, there.get(k), asked.get(k)) for k in {**there, **asked} if there.get(k) != asked.get(k)]
        return ", ".join(part for part in parts if part)
    words = [str(value) if value not in (None, "") else "nothing" for value in (there, asked)]
    return f"{key}: {words[0]} there, {words[1]} asked" if max(map(len, words)) <= _READABLE else ""

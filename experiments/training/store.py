"""Classifiers of a run folder: which there are, how they did, and how to get one back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.errors import valid_are
from datasets.task import Task, task_of
from experiments.networks.base import Network, at_once
from experiments.networks.registry import rebuild
from experiments.training.rules import RULES
from mechanisms.runs.files import MetricsLog, RunError, check_finite, load, rebuilt, replacing, waiting, weights_fingerprint
from mechanisms.runs.folder import dataset_of
from mechanisms.training.state import WEIGHTS

FOLDER = "classifiers"
RESULTS, LOCK = "results.jsonl", ".results.lock"
_ROW = {"algorithm": str, "seed": int, "steps": int, "seconds": (int, float), "rows": int, "majority": (int, float), "rules": dict}


@dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
        rule: by which its weights were selected; see :mod:`experiments.training.selection`.
        step: of its training, at which they were taken.
        description: what it was trained for and with.
    """

    algorithm: str
    seed: int
    rule: str
    network: Network
    step: int
    description: Mapping[str, Any]

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of images, float in [0, 1], ``(B, C, H, W)``; on the images' own device.

        Raises:
            RunError: for images of another shape than it was trained on.
        """
        if tuple(images.shape[1:]) != self.network.shape:
            raise RunError(f"{self.algorithm} of seed {self.seed} was trained on images of shape {self.network.shape}, not "
                           f"{tuple(images.shape[1:])}; take the data set that it was trained on")
        device = self.network.head.weight.device
        return torch.cat([self.network(part.to(device)).to(images.device) for part in images.split(at_once(self.network.shape))])


def folder_of(run: Path, algorithm: str, seed: int) -> Path:
    return Path(run) / FOLDER / algorithm / f"seed-{seed}"


def list_trained(run: Path) -> list[tuple[str, int]]:
    """``(algorithm, seed)`` of every finished classifier of a run, ERM first, then by name; empty without any."""
    pairs = {(row["algorithm"], row["seed"]) for row in results(run)}
    return sorted((pair for pair in pairs if is_finished(run, *pair)), key=lambda pair: (pair[0] != "erm", *pair))


def is_finished(run: Path, algorithm: str, seed: int) -> bool:
    """Whether this classifier is there, and its weights are those whose row is among the results, not those of a later attempt."""
    path = folder_of(run, algorithm, seed) / WEIGHTS
    return path.exists() and not _lacking(run, algorithm, seed, load(path, "classifier"))


def _lacking(run: Path, algorithm: str, seed: int, state: Mapping[str, Any]) -> str:
    """Why the weights of a training are not to be used, with the remedy; empty if they are."""
    again = _train(run, algorithm)
    if "diverged" in state:
        return (f"has diverged at step {state['diverged']}; its weights are of step {state['step']}. Train it again with a lower "
                f"--learning-rate: {again} --overwrite")
    steps = [row["steps"] for row in results(run) if (row["algorithm"], row["seed"]) == (algorithm, seed)]
    at = f", at step {state['step']}" if "step" in state else ""
    return "" if steps == [state.get("step")] else f"is unfinished{at}; {again} --resume, with the same data set, goes on"


def unfinished(run: Path) -> list[tuple[str, int, str]]:
    """``(algorithm, seed, why)`` of every classifier of a run that was begun and cannot be used; of a stack of seeds, of each."""
    finished, reasons = set(list_trained(run)), {}
    for folder in sorted((Path(run) / FOLDER).glob("*/seed*-*")):
        state = load(folder / WEIGHTS) if (folder / WEIGHTS).exists() else {}
        for seed in map(int, folder.name.split("-")[1:]):
            if (pair := (folder.parent.name, seed)) not in finished:
                reasons[pair] = _lacking(run, *pair, state)
    return [(*pair, why) for pair, why in reasons.items()]


def _train(run: Path, algorithm: str) -> str:
    """The command that trains it."""
    return f"python -m experiments.train --run {shlex.quote(str(run))} --algorithm {algorithm}"


def load_trained(run: Path, algorithm: str, seed: int, rule: str = "last", device: str | torch.device = "cpu") -> Trained:
    """The classifier of that algorithm and seed, in eval mode, weights frozen; gradients still flow to images.

    Raises:
        RunError: for an unknown rule, or one whose weights this training did not keep; for a classifier that was never
            trained, is unfinished or has diverged; for a damaged file or broken weights.
    """
    if rule not in RULES:
        raise RunError(f"unknown selection rule {rule!r}; {valid_are(RULES, rule)}")
    path = folder_of(run, algorithm, seed) / WEIGHTS
    if not Path(run).is_dir():
        raise RunError(f"run folder {run} does not exist; train into it first: {_train(run, algorithm)}")
    if not path.exists():
        there = ", ".join(f"{name} (seed {n})" for name, n in list_trained(run)) or "none"
        raise RunError(f"{run} has no classifier {algorithm} of seed {seed}; there are: {there}. Train it: "
                       f"{_train(run, algorithm)}, with the same data set")
    state = load(path, "classifier")
    if lacking := _lacking(run, algorithm, seed, state):
        raise RunError(f"{algorithm} of seed {seed} in {run} {lacking}")
    kept = {"last": state, **state.get("selected", {})}
    if rule not in kept:
        raise RunError(f"{path} has no weights by the rule {rule!r}, only by {', '.join(kept)}: its data set has no named shift with true "
                       "images on validation")
    again = f"Train it again: {_train(run, algorithm)} --overwrite"
    network = rebuilt(path, lambda: rebuild(state), kept[rule].get("weights"), again)
    check_finite(network, path, again)
    return Trained(algorithm, seed, rule, network.eval().requires_grad_(False).to(device), kept[rule]["step"],
                   {name: value for name, value in state.items() if name not in ("weights", "selected")})


def check_base(run: Path, trained: Trained, base: Trained) -> None:
    """Raises RunError for a classifier that began with another ERM than ``base``, which is the one with its weights of the end."""
    description = trained.description  # an older one has the newest weights only, which are ERM's where it was fine-tuned once
    if description.get("base", description.get("begun_from")) != weights_fingerprint(base.network):
        raise RunError(f"{trained.algorithm} of seed {trained.seed} in {run} began with another erm than the one that is there now; train "
                       f"it again: {_train(run, trained.algorithm)} --overwrite")


def results(run: Path) -> list[dict[str, Any]]:
    """Rows of ``results.jsonl``, one for each finished ``(algorithm, seed)``; see :func:`experiments.training.run.train_classifiers`."""
    return MetricsLog.read(Path(run) / FOLDER / RESULTS, _ROW)


def record(run: Path, row: Mapping[str, Any]) -> None:
    """Add a row to ``results.jsonl``, in place of an earlier one of the same algorithm and seed; what is there is not written again."""
    _rewrite(run, lambda rows: rows if row in rows else [*_others(rows, row["algorithm"], row["seed"]), dict(row)])


def forget(run: Path, algorithm: str, seed: int) -> None:
    """Take the row of a classifier out of ``results.jsonl``: its weights are about to change."""
    _rewrite(run, lambda rows: _others(rows, algorithm, seed))


def _others(rows: list[dict[str, Any]], algorithm: str, seed: int) -> list[dict[str, Any]]:
    return [row for row in rows if (row["algorithm"], row["seed"]) != (algorithm, seed)]


def _rewrite(run: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Several commands may train into one run: who comes second waits, and sees what the first has written.

    Raises:
        RunError: where the run cannot be written.
    """
    path = Path(run) / FOLDER / RESULTS
    with waiting(path.parent / LOCK):
        before = results(run)
        if (after := change(before)) != before:
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in after), encoding="utf-8")


def trained_task(run: Path, trained: Trained | None = None) -> Task:
    """The task that the run's classifiers were trained for; the data set's own where there are none."""
    if trained is None and (there := list_trained(run)):
        trained = load_trained(run, *there[0])
    dataset = dataset_of(run)
    if trained is None:
        return task_of(dataset)
    task = trained.description["task"]
    return task_of(dataset, task["label"], tuple(task["spurious"]), task["environment"])

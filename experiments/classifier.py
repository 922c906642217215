"""Classifiers of a run folder: which there are, how they did, and how to get one back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.networks import Network, rebuild
from experiments.selection import RULES
from mechanisms.bookkeeping import WEIGHTS
from mechanisms.checkpoint import MetricsLog, RunError, check_finite, load, replacing

FOLDER = "classifiers"
RESULTS = "results.jsonl"
_BATCH = 1000


@dataclass(frozen=True)
class Trained:
    """A trained classifier.

    Attributes:
        rule: by which its weights were selected; see :mod:`experiments.selection`.
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
        return torch.cat([self.network(part.to(device)).to(images.device) for part in images.split(_BATCH)])


def folder_of(run: Path, algorithm: str, seed: int) -> Path:
    return Path(run) / FOLDER / algorithm / f"seed-{seed}"


def list_trained(run: Path) -> list[tuple[str, int]]:
    """``(algorithm, seed)`` of every finished classifier of a run, ERM first, then by name; empty without any."""
    found = {(row["algorithm"], row["seed"]) for row in results(run) if (folder_of(run, row["algorithm"], row["seed"]) / WEIGHTS).exists()}
    return sorted(found, key=lambda pair: (pair[0] != "erm", *pair))


def load_trained(run: Path, algorithm: str, seed: int, rule: str = "last", device: str | torch.device = "cpu") -> Trained:
    """The classifier of that algorithm and seed, in eval mode, weights frozen; gradients still flow to images.

    Raises:
        RunError: for an unknown rule, or one whose weights this training did not keep; for a classifier that was never
            trained; for a damaged file or broken weights.
    """
    if rule not in RULES:
        raise RunError(f"unknown selection rule {rule!r}; valid are {', '.join(RULES)}")
    path = folder_of(run, algorithm, seed) / WEIGHTS
    if not path.exists():
        there = ", ".join(f"{name} (seed {n})" for name, n in list_trained(run)) or "none"
        raise RunError(f"{run} has no classifier {algorithm} of seed {seed}; there are: {there}. Train it: python -m experiments.train "
                       f"--run {run} --algorithm {algorithm}, with the same data set")
    state = load(path, "classifier")
    kept = {"last": state, **state.get("selected", {})}
    if rule not in kept:
        raise RunError(f"{path} has no weights by the rule {rule!r}, only by {', '.join(kept)}: its data set has no named shift with true "
                       "images on validation")
    network = rebuild(state)
    network.load_state_dict(kept[rule]["weights"])
    check_finite(network, path, f"Train it again: python -m experiments.train --run {run} --algorithm {algorithm} --overwrite")
    return Trained(algorithm, seed, rule, network.eval().requires_grad_(False).to(device), kept[rule]["step"],
                   {name: value for name, value in state.items() if name not in ("weights", "selected")})


def results(run: Path) -> list[dict[str, Any]]:
    """Rows of ``results.jsonl``, one for each finished ``(algorithm, seed)``; see :func:`experiments.train.train_classifiers`."""
    return MetricsLog.read(Path(run) / FOLDER / RESULTS)


def record(run: Path, row: Mapping[str, Any]) -> None:
    """Add a row to ``results.jsonl``, in place of an earlier one of the same algorithm and seed."""
    same = (row["algorithm"], row["seed"])
    rows = [*(r for r in results(run) if (r["algorithm"], r["seed"]) != same), row]
    with replacing(Path(run) / FOLDER / RESULTS) as temporary:
        temporary.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")

"""How a command line asks for measurements. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.ranges import Sample, Seed


@dataclass(frozen=True)
class Options:
    """Measure what this machine makes of the product, beside reference figures and targets; run nothing else meanwhile."""

    only: str = ""
    """Names to measure, comma-separated; all if empty."""
    out: Path = Path("benchmark.json")
    """File that maps each name to {value, unit, reference, target, met}."""
    run: Path = Path("runs/benchmark")
    """Folder for what is trained on the way."""
    mnist: Path | None = None
    """Folder of MNIST's IDX files: 8,000 distinct digits to train on; else two renderings of each embedded digit."""
    official: Path | None = None
    """Folder of official Morpho-MNIST files, to compare renderings with (needs --mnist)."""
    count: Sample[int] = 4096
    """Held-out images that the errors to the truth are averaged over; fewer if the test split is smaller."""
    seed: Seed[int] = 0
    """Of data, initial weights and interventions."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""

"""``python -m experiments.benchmark``: speed, memory and quality figures, each beside its reference and its target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.ranges import Sample, Seed, check_ranges
from mechanisms.command import run_command


@dataclass(frozen=True)
class Options:
    """Measure what this machine makes of the product, beside reference figures and targets. Let nothing else run meanwhile."""

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


def main(options: Options) -> None:
    from rich.console import Console
    from rich.table import Table

    from datasets.words import listed
    from experiments import classifier_measurements, experts_measurements  # noqa: F401  (they add their own)
    from experiments.measurements import MEASUREMENTS, Bench
    from mechanisms.checkpoint import write_json

    check_ranges(options)
    names = listed(options.only, "--only", MEASUREMENTS) or list(MEASUREMENTS)
    bench, results = Bench(options), {}
    for name in names:
        results[name] = MEASUREMENTS[name].measure(bench)
        write_json(options.out, results)
    table = Table("figure", "value", "unit", "reference", "target", "met")
    for name, row in results.items():
        cells = ("–" if row[key] is None else f"{row[key]:.4g}" for key in ("value", "reference", "target"))
        value, reference, target = cells
        met = "–" if row["met"] is None else "yes" if row["met"] else "no"
        table.add_row(name, value, row["unit"], reference, ("≥ " if MEASUREMENTS[name].higher else "≤ ") * (target != "–") + target, met)
    Console(width=130).print(table)
    for name, row in results.items():
        if row.get("note"):
            print(f"{name}: {row['note']}")
    print(f"written to {options.out}")


if __name__ == "__main__":
    run_command(Options, main)

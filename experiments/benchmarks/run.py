"""Measures what is asked for, one figure after the other, and prints and saves them beside their references and targets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import experiments.benchmarks
from datasets.words import listed
from experiments.benchmarks.base import MEASUREMENTS, Bench
from mechanisms.runs.files import write_json

for _module in pkgutil.iter_modules(experiments.benchmarks.__path__, "experiments.benchmarks."):
    if _module.name != __name__:
        importlib.import_module(_module.name)  # registers its measurements


def benchmark(out: Path, only: str = "", **given: Any) -> None:
    """Measure into the file ``out``, and print a table.

    Args:
        only: names, with commas between; all if empty.
        given: see :class:`experiments.benchmarks.base.Bench`.

    Raises:
        UserError: for an unknown name.
    """
    names = listed(only, "--only", MEASUREMENTS) or list(MEASUREMENTS)
    bench, results = Bench(**given), {}
    for name in names:
        results[name] = MEASUREMENTS[name].measure(bench)
        write_json(out, results)
    Console(width=130).print(table(results))
    for name, row in results.items():
        if row.get("note"):
            print(f"{name}: {row['note']}")
    print(f"written to {out}")


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each figure, its value beside reference and target."""
    lines = Table("figure", "value", "unit", "reference", "target", "met")
    for name, row in results.items():
        value, reference, target = ("–" if row[key] is None else f"{row[key]:.4g}" for key in ("value", "reference", "target"))
        met = "–" if row["met"] is None else "yes" if row["met"] else "no"
        lines.add_row(name, value, row["unit"], reference, ("≥ " if MEASUREMENTS[name].higher else "≤ ") * (target != "–") + target, met)
    return lines

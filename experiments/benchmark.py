"""``python -m experiments.benchmark``: speed, memory and quality figures, each beside its reference and its target."""

from __future__ import annotations

from datasets.ranges import check_ranges
from experiments.benchmarks.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    from rich.console import Console
    from rich.table import Table

    from datasets.words import listed
    from experiments.benchmarks.base import MEASUREMENTS, Bench
    from mechanisms.runs.files import write_json

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

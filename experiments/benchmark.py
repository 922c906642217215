"""``python -m experiments.benchmark``: speed, memory and quality figures, each beside its reference and its target."""

from __future__ import annotations

from datasets.ranges import check_ranges
from experiments.benchmarks.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    check_ranges(options)

    from experiments.benchmarks.run import benchmark

    benchmark(options.out, only=options.only, run=options.run, mnist=options.mnist, official=options.official, count=options.count,
              seed=options.seed, device=options.device)


if __name__ == "__main__":
    run_command(Options, main)

"""``python -m experiments.compare``: every image mechanism under equal budgets, one table beside floors and bounds."""

from __future__ import annotations

from datasets.ranges import within
from experiments.comparison.options import Options
from mechanisms.runs.command import run_command

Jobs = within(1, 1024)


def main(options: Options) -> None:
    options.check()

    from experiments.comparison.run import compare

    compare(options)


if __name__ == "__main__":
    run_command(Options, main)

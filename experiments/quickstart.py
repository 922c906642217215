"""``python -m experiments.quickstart``: from data to a report that one can look at, in minutes on two cores.

Every stage is what a command does alone; the report's section "Every step alone" says which.
"""

from __future__ import annotations

from dataclasses import asdict

from experiments.report.options import Options
from mechanisms.runs.command import run_command
from mechanisms.training.config import RunOptions


def main(options: Options) -> None:
    options.check()

    from experiments.report.run import quickstart

    where = RunOptions(options.folder, options.resume, options.overwrite)
    quickstart(options.data, where, options.effort, minutes=options.minutes, do=options.do, count=options.count, seed=options.seed,
               device=options.device, precision=options.precision, flags=asdict(options))


if __name__ == "__main__":
    run_command(Options, main)

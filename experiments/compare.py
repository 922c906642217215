"""``python -m experiments.compare``: every image mechanism under equal budgets, one table beside floors and bounds."""

from __future__ import annotations

from experiments.comparison.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.comparison.run import compare

    compare(options.conditions, options.run, only=options.only, finetuned=options.finetuned, seeds=options.seeds, out=options.out,
            overwrite=options.overwrite)


if __name__ == "__main__":
    run_command(Options, main)

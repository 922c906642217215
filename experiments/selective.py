"""``python -m experiments.selective``: how often MaskTune and its ERM together are sure enough to answer, and how right they are then."""

from __future__ import annotations

from experiments.stress.selective_options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.stress.selective import selective_into

    selective_into(options.file, options.run, options.rule, options.coverages(), options.seed, options.device)


if __name__ == "__main__":
    run_command(Options, main)

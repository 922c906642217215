"""``python -m dscm.finetune``: counterfactual training of a run's image mechanism, and what it has made better and worse."""

from __future__ import annotations

from datasets.ranges import check_ranges
from dscm.finetuning.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    check_ranges(options)
    from dscm.finetuning.run import finetune

    finetune(options.run, options.into, options.training, options.config, options.teachers, options.count)


if __name__ == "__main__":
    run_command(Options, main)

"""``python -m dscm.evaluate``: every metric of a run's counterfactuals, each beside its floors."""

from __future__ import annotations

from dscm.evaluation.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()
    from dscm.evaluation.run import evaluate_run

    evaluate_run(options.run, options.out, options.interventions, options.split, options.count, options.seed, options.device,
                 options.config)


if __name__ == "__main__":
    run_command(Options, main)

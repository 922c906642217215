"""``python -m experiments.robustness``: classifiers on intervened images, a table and a figure; and does a model predict it?"""

from __future__ import annotations

from experiments.stress.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.stress.robustness import robustness_into

    robustness_into(options.folder, data=options.data, run=options.run, algorithms=options.algorithms, rule=options.rule, own=options.own,
                    outputs=options.outputs, model=options.model, label=options.label, spurious=options.spurious_names,
                    split=options.split, count=options.count, focus=options.focus, ood=options.ood, seed=options.seed,
                    device=options.device)


if __name__ == "__main__":
    run_command(Options, main)

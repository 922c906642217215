"""``python -m experiments.train``: fits classifiers by one or several algorithms, over several seeds."""

from __future__ import annotations

from experiments.training.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.training.run import algorithms, describe, print_results, rows_for, train_classifiers

    dataset, names = options.data.open(), algorithms(options.algorithms, options.given_settings)
    if options.describe:
        print(describe(dataset, names, options.training, options.settings))
        return
    rows = rows_for(dataset, options.label, options.spurious_names, options.environment, data_fraction=options.data_fraction,
                    box_noise=options.box_noise, model=options.model, truth=options.truth, per_row=options.counterfactuals,
                    kept_in=options.run.run, device=options.training.device)
    seeds = range(options.seed, options.seed + options.seeds)
    print_results(train_classifiers(rows, names, seeds, options.training, options.settings, options.run, options.data, options.vectorize))


if __name__ == "__main__":
    run_command(Options, main)

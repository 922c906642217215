"""``python -m mechanisms.predictors``: fits q(attribute | image), the predictors that judge counterfactuals, and tests them."""

from __future__ import annotations

from mechanisms.anticausal.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    from mechanisms.anticausal.fit import train_predictors

    train_predictors(options.data.open(), options.data, options.run, options.training, options.config, options.renderings, options.shift)


if __name__ == "__main__":
    run_command(Options, main)

"""``python -m pgm.train``: fits the attributes' structural causal model by maximum likelihood."""

from __future__ import annotations

import mechanisms  # noqa: F401  (explains a clash of names before anything else is imported)
from datasets.ranges import check_ranges
from mechanisms.runs.command import run_command
from pgm.options import Options


def main(options: Options) -> None:
    check_ranges(options)
    from pgm.fit import train_attributes

    train_attributes(options.data.open(), options.data, options.run, options.training, options.config)


if __name__ == "__main__":
    run_command(Options, main)

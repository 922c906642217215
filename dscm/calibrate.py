"""``python -m dscm.calibrate``: lets draws of counterfactual images vary as much as the image mechanism errs."""

from __future__ import annotations

from datasets.ranges import check_ranges
from dscm.jitter.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    check_ranges(options)
    from dscm.jitter.run import calibrate_and_print

    calibrate_and_print(options.run, options.count, options.seed, options.device)


if __name__ == "__main__":
    run_command(Options, main)

"""``python -m experiments.illustrate``: the pictures of docs/metrics.md, what each metric can and cannot tell apart, of any run."""

from __future__ import annotations

from experiments.illustrations.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.illustrations.run import illustrate

    illustrate(options.run, options.other, options.out, only=options.only, count=options.count, shown=options.shown,
               cycle_images=options.cycle_images, draws=options.draws, draw_images=options.draw_images, seed=options.seed,
               device=options.device)


if __name__ == "__main__":
    run_command(Options, main)

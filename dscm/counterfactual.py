"""``python -m dscm.counterfactual``: images of a run's data set, and what they would have looked like under interventions."""

from __future__ import annotations

from dscm.figures.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()
    from dscm.figures.run import draw_grid

    draw_grid(options.run, options.do, options.out, options.split, options.count, options.rows, options.draws, options.temperature,
              options.effect, options.seed, options.device)


if __name__ == "__main__":
    run_command(Options, main)

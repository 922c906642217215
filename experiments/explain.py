"""``python -m experiments.explain``: where classifiers look, as heat maps over images; of MaskTune before and after, with its masks."""

from __future__ import annotations

from experiments.explanations.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from dscm.figures.style import check_format, save_figure
    from experiments.explanations import explain, explain_own

    check_format(options.out)
    figure = explain_own(options) if options.classifier else explain(options)
    print(f"wrote {save_figure(figure, options.out)}")


if __name__ == "__main__":
    run_command(Options, main)

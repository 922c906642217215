"""``python -m experiments.preview``: what augmentations from masks make of a few images, before anything is trained on them."""

from __future__ import annotations

from experiments.explanations.preview_options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from dscm.figures.style import check_format, save_figure
    from experiments.explanations.preview import preview

    check_format(options.out)
    print(f"wrote {save_figure(preview(options), options.out)}")


if __name__ == "__main__":
    run_command(Options, main)

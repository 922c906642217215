"""``python -m experiments.preview``: what augmentations from masks make of a few images, before anything is trained on them."""

from __future__ import annotations

from experiments.explanations.preview_options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.explanations.preview import preview

    path = preview(options.out, options.run or options.data, options.choice, cf=options.cf, factual=options.factual, label=options.label,
                   algorithm=options.algorithm, seed_of=options.seed_of, ready=options.ready, model=options.model, truth=options.truth,
                   device=options.device)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(Options, main)

"""``python -m experiments.explain``: where classifiers look, as heat maps over images; of MaskTune before and after, with its masks."""

from __future__ import annotations

from experiments.explanations.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    from experiments.explanations.explain import explain, explain_own

    how = {"method": options.method, "layer": options.layer, "device": options.device}
    if options.classifier:
        path = explain_own(options.out, options.run or options.data, options.choice, options.classifier, options.weights,
                           outputs=options.outputs, **how)
    else:
        path = explain(options.out, options.run, options.choice, named=options.algorithm, seed=options.seed_of, rule=options.rule, **how)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(Options, main)

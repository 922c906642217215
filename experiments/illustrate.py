"""``python -m experiments.illustrate``: the pictures of docs/metrics.md, what each metric can and cannot tell apart, of any run."""

from __future__ import annotations

from datasets.words import listed
from experiments.illustrations.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()

    import warnings

    from datasets.schema import SchemaError
    from dscm.figures.style import save_figure
    from dscm.runs import find_predictors, open_run
    from experiments.illustrations.pictures import PICTURES
    from experiments.illustrations.scene import Scene

    names = listed(options.only, "--only", PICTURES) or list(PICTURES)
    model, dataset = open_run(options.run, options.device)
    runs = {options.run: model, **({options.other: open_run(options.other, options.device)[0]} if options.other else {})}
    kinds = [type(each.image).__name__ for each in runs.values()]
    models = dict(zip(kinds if len(set(kinds)) == len(kinds) else map(str, runs), runs.values(), strict=True))
    predictors = find_predictors(options.run, str(model.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values are drawn from training, and what follows from them is the truth's matter
        scene, missing = Scene(models, dataset, predictors, options), {}
        for name in names:
            try:
                print(f"wrote {save_figure(PICTURES[name](scene), options.out / f'{name}.png')}")
            except SchemaError as error:
                missing[name] = str(error)
    for name, reason in missing.items():
        print(f"not drawn: {name}: {reason}")


if __name__ == "__main__":
    run_command(Options, main)

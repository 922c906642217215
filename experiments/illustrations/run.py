"""Draws the pictures of a run, and says which could not be drawn."""

from __future__ import annotations

import warnings
from pathlib import Path

from datasets.schema import SchemaError
from datasets.words import listed
from dscm.evaluation.config import EvaluationConfig
from dscm.figures.style import save_figure
from dscm.model import DSCM
from dscm.runs import find_predictors, open_run
from experiments.illustrations.pictures import PICTURES
from experiments.illustrations.scene import Scene


def illustrate(run: Path, other: Path | None, out: Path, *, only: str = "", count: int = 500, shown: int = 2, cycle_images: int = 16,
               draws: int = 32, draw_images: int = 40, seed: int = 0, device: str = "auto") -> None:
    """Write pictures into the folder ``out``; what cannot be drawn of this run is said.

    Args:
        other: a second run of the same data, to stand beside it.
        only: names of pictures, with commas between; all if empty.
        count, shown: how many images are asked about, and how many of them are shown.
        cycle_images, draws, draw_images: see :class:`dscm.evaluation.config.EvaluationConfig`.

    Raises:
        UserError: for an unknown picture; for runs that cannot be read, or are of different data.
    """
    names = listed(only, "--only", PICTURES) or list(PICTURES)
    model, dataset = open_run(run, device)
    runs = {run: model, **({other: open_run(other, device)[0]} if other else {})}
    predictors, config = find_predictors(run, str(model.device)), EvaluationConfig(draws=draws, draw_images=draw_images,
                                                                                  cycle_images=cycle_images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values are drawn from training, and what follows from them is the truth's matter
        scene, missing = Scene(named(runs), dataset, predictors, run, config, count=count, shown=shown, seed=seed), {}
        for name in names:
            try:
                print(f"wrote {save_figure(PICTURES[name](scene), out / f'{name}.png')}")
            except SchemaError as error:
                missing[name] = str(error)
    for name, reason in missing.items():
        print(f"not drawn: {name}: {reason}")


def named(runs: dict[Path, DSCM]) -> dict[str, DSCM]:
    """Models under the names of their image mechanisms' classes, or, where these are alike, of their runs."""
    kinds = [type(each.image).__name__ for each in runs.values()]
    return dict(zip(kinds if len(set(kinds)) == len(kinds) else map(str, runs), runs.values(), strict=True))

"""``python -m experiments.illustrate``: the pictures of docs/metrics.md, what each metric can and cannot tell apart, of any run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, Sample, Seed, check_ranges, within
from datasets.words import listed
from mechanisms.command import run_command

Draws = within(2, 10_000)


@dataclass(frozen=True)
class Options:
    """Draw the same few images as a run, the truth and several useless models answer them, each metric below each.

    For instance: python -m experiments.illustrate --run runs/model --other runs/vae --out docs/metrics
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms; with predictors for what is read by them, and calibrated for the picture of draws."""
    other: Path | None = None
    """A second run of the same data, to stand beside it."""
    out: Path = Path("docs/metrics")
    """Folder for the pictures."""
    only: str = ""
    """Names of pictures, comma-separated; all if empty."""
    count: Sample[int] = 500
    """Test images that means are taken over; fewer if the split is smaller."""
    shown: AtLeastOne[int] = 2
    """How many of them are shown: the first whose true image differs from the observed one by the median or more."""
    cycle_images: Sample[int] = 16
    """How many go through repeated interventions."""
    draws: Draws[int] = 32
    """Draws of each counterfactual in the picture of calibration, at least 2."""
    draw_images: Sample[int] = 40
    """How many images are asked for so many draws."""
    seed: Seed[int] = 0
    """Of interventions and noise."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        check_ranges(self)
        if self.other is not None and self.other.resolve() == self.run.resolve():
            raise UserError(f"--other {self.other} is the run itself; name a second one, or leave it out")


def main(options: Options) -> None:
    options.check()

    import warnings

    from datasets.schema import SchemaError
    from dscm.counterfactual import open_run
    from dscm.evaluate import find_predictors
    from dscm.figures import save_figure
    from experiments.illustrations import PICTURES
    from experiments.scene import Scene

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

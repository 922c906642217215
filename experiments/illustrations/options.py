"""How a command line asks for illustrations. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, Sample, Seed, check_ranges, within

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

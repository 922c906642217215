"""How a command line asks for selective classification. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.ranges import Range, Seed, check_ranges
from datasets.words import listed_numbers

COVERAGES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
_FILE = "selective.json"


@dataclass(frozen=True)
class Options:
    """Answer only where ERM and MaskTune are sure together, p = softmax(p_erm · p_masktune): coverage and accuracy of the answers.

    The threshold for each wanted coverage is the one that gives it on validation images as observed; the test images are those
    as observed and those under the data set's named shifts, as far as the true process makes them.

    For instance: python -m experiments.selective --run runs/classifiers --coverage 0.8,0.9,1
    """

    run: Path = Path("runs/classifiers")
    """Run folder in which experiments.train has trained erm and masktune."""
    coverage: str = ""
    """Wanted shares of images that are answered, comma-separated; several from 0.5 to 1 without it."""
    rule: Literal["last", "iid", "worst-group", "oracle"] = "last"
    """By which rule MaskTune's weights were selected; ERM's are those of the end, with which fine-tuning began."""
    out: Path | None = None
    """File to write, JSON; without it selective.json in the run folder."""
    seed: Seed[int] = 0
    """Of what is random in shifts."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        check_ranges(self), self.coverages()

    def coverages(self) -> tuple[float, ...]:
        """The wanted ones, or those of :data:`COVERAGES`.

        Raises:
            UserError: for one that is no number in (0, 1].
        """
        wanted = tuple(listed_numbers(self.coverage, "--coverage", float)) or COVERAGES
        if wrong := [f"{c:g}" for c in wanted if not Range(0, 1, above=True).holds(c)]:
            raise UserError(f"--coverage {', '.join(wrong)} must lie in (0, 1]: the share of images that are answered")
        return wanted

    @property
    def file(self) -> Path:
        return self.out or self.run / _FILE

"""How a command line asks for a preview of augmented images. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, NotNegative, Seed, check_ranges
from experiments.explanations.options import ImageChoice, check_rows


@dataclass(frozen=True)
class Options:
    """Draw images of a data set with known masks, and beside each what --cf and --factual of experiments.train would make of it.

    For instance: python -m experiments.preview --dataset photo-backgrounds --cf tile,mean --factual shuffle,mrand --out preview.png
    """

    cf: str = "all"
    """What fills the foreground's bounding rectangle: mean, random, shuffle, tile, folder, dscm, comma-separated; all, or none."""
    factual: str = "all"
    """The new background: random, shuffle, mrand, fgsm, pgd, dscm, comma-separated; all, or none."""
    count: AtLeastOne[int] = 6
    """How many images, drawn from the split by --seed; fewer if there are no more."""
    rows: str = ""
    """Numbers of images instead, comma-separated."""
    split: Literal["train", "valid", "test"] = "train"
    """Where the images come from."""
    label: str = ""
    """Attribute that is to be classified; the data set's own without it."""
    data: DataOptions = field(default_factory=DataOptions)
    """Without --run."""
    run: Path | None = None
    """Run folder with classifiers; its data set is used, and fgsm and pgd mislead its classifier of --algorithm."""
    algorithm: str = "erm"
    """Whose classifier."""
    seed_of: NotNegative[int] = 0
    """Of which of its seeds."""
    ready: Path | None = None
    """Folder of in-painted images, <split>/<row>.png, for --cf folder."""
    model: Path | None = None
    """Run folder of a trained DSCM, for dscm."""
    truth: bool = False
    """Let the true process make the images of dscm instead, where the data set knows it."""
    out: Path = Path("preview.png")
    """Picture to write."""
    seed: Seed[int] = 0
    """Of which images are drawn, and of what is random in augmentations."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    @property
    def choice(self) -> ImageChoice:
        return ImageChoice(self.split, self.rows, self.count, self.seed)

    def check(self) -> None:
        """Raises UserError for flags that make no sense."""
        check_ranges(self)
        check_rows(self.rows)
        if self.run is not None and self.data != DataOptions():
            raise UserError(f"--run {self.run} says which data set is looked at; leave --dataset and its options out")
        if self.run is not None and self.label:
            raise UserError(f"--run {self.run} says what its classifiers predict; leave --label {self.label} out")
        if self.model is not None and self.truth:
            raise UserError(f"either --model {self.model} or --truth makes the images of dscm, not both")

"""How a command line asks for explanations. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, NotNegative, Seed, check_ranges
from datasets.words import listed_numbers

LAYERED = ("gradcam", "xgradcam")  # methods that read a layer's maps


@dataclass(frozen=True)
class ImageChoice:
    """Which images of a split are shown.

    Attributes:
        rows: their numbers, with commas between; if empty, ``count`` of them at random, by ``seed``.
        shift: one of the data set's, under which they are shown; as observed if empty. ``seed`` is that of its random numbers too.
    """

    split: str = "test"
    rows: str = ""
    count: int = 8
    seed: int = 0
    shift: str = ""


@dataclass(frozen=True)
class Options:
    """Draw heat maps of a run's classifier for a few images: what in each of them speaks for the predicted class.

    Of masktune: the network before, the masked image and the network after; of others, ERM's map beside theirs if the run has one.
    Where the data set knows the foreground, it is outlined, and under each map stands which share of it is inside.

    For instance: python -m experiments.explain --run runs/classifiers --algorithm masktune --shift malicious --out explain.png
    """

    run: Path | None = None
    """Run folder with classifiers; its data set is used. Without it, --dataset and --classifier say what to look into."""
    algorithm: str = ""
    """Whose classifier; without it masktune's if the run has one, else the last of its algorithms by name."""
    method: Literal["saliency", "gradcam", "xgradcam", "deeplift", "integrated_gradients", "lime"] = "xgradcam"
    """How it is found out. gradcam and xgradcam read a layer of maps; the others need none. lime takes seconds an image."""
    seed_of: NotNegative[int] = 0
    """Of which of its seeds."""
    rule: Literal["last", "iid", "worst-group", "oracle"] = "last"
    """By which rule its weights were selected; the network before MaskTune's fine-tuning is always that of the end."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the images come from."""
    shift: str = ""
    """Show them under one of the data set's named shifts, by the true process; as observed without it."""
    count: AtLeastOne[int] = 8
    """How many images, at random."""
    rows: str = ""
    """Numbers of images instead, comma-separated."""
    layer: str = ""
    """Dotted name of the layer whose maps gradcam and xgradcam read; what the network itself names without it."""
    classifier: str = ""
    """A classifier of your own instead of the run's: file.py:build, see experiments/networks/own.py. gradcam and xgradcam of it need
    --layer."""
    weights: Path | None = None
    """Its weights."""
    outputs: Literal["auto", "logits", "probabilities", "log-probabilities"] = "auto"
    """What it answers with; auto: logits, but it asks where a few answers all lie in [0, 1], as probabilities do."""
    data: DataOptions = field(default_factory=DataOptions)
    """For your own classifier, without --run."""
    out: Path = Path("explain.png")
    """Picture to write."""
    seed: Seed[int] = 0
    """Of which images, and of what is random in a shift."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for flags that make no sense."""
        if self.run is None and not self.classifier:
            raise UserError("nothing to explain: give --run, a folder with classifiers of experiments.train, or your own by --classifier")
        if self.run is not None and self.data != DataOptions():
            raise UserError(f"--run {self.run} says which data set is looked at; leave --dataset and its options out")
        check_ranges(self)
        if self.weights is not None and not self.classifier:
            raise UserError("--weights are for a --classifier of your own; the run's classifiers have theirs")
        if self.outputs != "auto" and not self.classifier:
            raise UserError(f"--outputs {self.outputs} is about a --classifier of your own; the run's classifiers answer with logits")
        if self.classifier and self.method in LAYERED and not self.layer:
            raise UserError(f"--classifier with --method {self.method} needs --layer NAME: the module of your network whose maps are to be "
                            "read, a convolution or what follows it; other methods need none, such as --method saliency")
        if self.layer and self.method not in LAYERED:
            raise UserError(f"--layer {self.layer}: --method {self.method} reads no layer, only {' and '.join(LAYERED)} do; leave it out")
        check_rows(self.rows)

    @property
    def choice(self) -> ImageChoice:
        return ImageChoice(self.split, self.rows, self.count, self.seed, self.shift)


def check_rows(rows: str) -> None:
    """Raises UserError for --rows that are no numbers."""
    if wrong := [row for row in listed_numbers(rows, "--rows") if row < 0]:
        raise UserError(f"--rows {rows}: there is no row {wrong[0]}; the first is 0")


def numbered(rows: str, available: int, split: str) -> list[int]:
    """The numbers of --rows; raises UserError for one that a split does not have."""
    numbers = listed_numbers(rows, "--rows")
    if beyond := [str(row) for row in numbers if row >= available]:
        raise UserError(f"--rows {', '.join(beyond)}: the {split} split has {available} images, 0..{available - 1}")
    return numbers

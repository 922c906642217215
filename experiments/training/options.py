"""How a command line asks for classifiers. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from datasets.errors import UserError
from datasets.options import DataOptions
from mechanisms.runs.command import Switch
from mechanisms.training.config import RunOptions, TrainingConfig

NEVER = 1e6  # clip and skip from here on touch no update
DEFAULTS = TrainingConfig(batch_size=128, optimizer="adam", learning_rate=1e-3, schedule="constant", warmup=0, weight_decay=0.0,
                          beta2=0.999, clip=NEVER, skip=NEVER, ema=0.0, validations=20, validation_rows=5000)
DEFAULT_EPOCHS = 10.0
SETTING_FLAGS = ("cf", "factual", "saliency", "saliency_weight")
"""Options that are settings of every algorithm that has them, as ``--set KEY=VALUE`` is."""


@dataclass(frozen=True)
class TrainingFlags:
    """What of network and training is asked for; what is not follows the data set's recipe for the algorithm, or a default."""

    network: Annotated[str | None, tyro.conf.arg(aliases=["--backbone"])] = None
    """Which network: mlp, smallcnn or small (default without a recipe), or a classifier of torchvision, as resnet18 or resnet50."""
    weights: str | None = None
    """What a network of torchvision begins with: none (random, without a recipe), default (torchvision's pretrained weights, which
    are downloaded), or the path of its state dict, .pt or .safetensors."""
    frozen: Switch = None
    """Train the head alone; the body's features of the images are computed once and kept."""
    hidden: int | None = None
    """Units of its last hidden layer."""
    l2: float | None = None
    """Weight of the sum of squares of all parameters that are trained in the loss, 0 without a recipe."""
    crop: int | None = None
    """Train on windows, at random, of each image with a border of so many zeros around it; masks and counterfactuals follow."""
    flip: Switch = None
    """Mirror half of the training images, at random; masks and counterfactuals follow. Only where a mirrored image has the same label."""
    epochs: float | None = None
    """Budget in passes over the training split, 10 without a recipe."""
    steps: int | None = None
    """Budget in updates."""
    minutes: float | None = None
    """Budget in wall-clock minutes; depends on the machine, so it does not resume bit for bit."""
    batch_size: int | None = None
    """Images per update, over all processes together, 128 without a recipe; the whole split is never shuffled."""
    optimizer: Literal["adamw", "adam", "sgd"] | None = None
    """adam without a recipe; sgd has momentum beta1."""
    learning_rate: float | None = None
    """Peak of the schedule, 0.001 without a recipe."""
    schedule: Literal["cosine", "constant", "step"] | None = None
    """How the learning rate falls with progress, constant without a recipe; step: to a tenth at one half and at three quarters."""
    warmup: int | None = None
    """Updates over which the learning rate rises, 0 without a recipe."""
    weight_decay: float | None = None
    """Pull of the weights towards 0, 0 without a recipe."""
    beta1: float | None = None
    """First-moment decay of Adam, momentum of SGD, 0.9 without a recipe."""
    ema: float | None = None
    """Decay of averaged weights, 0 (no average) without a recipe; not with batch norm, whose statistics are not averaged."""
    validations: int | None = None
    """How many times in a training the validation split is looked at, by the selection rules too; 20 without a recipe."""
    validation_rows: int | None = None
    """How many of its rows each look takes, 5,000 without a recipe; once more for every named shift."""
    patience: int | None = None
    """So many validations in a row that were no better than the best end the training early; without it nothing does."""
    checkpoint_seconds: float | None = None
    """Time between checkpoints, 30 without a recipe; any of them resumes to the same result."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """Arithmetic of the body's matrix products, auto without a recipe: bf16 where the hardware has it. Heads, losses and
    penalties are fp32."""

    def given(self) -> dict[str, Any]:
        """Only what was asked for."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class Options:
    """Train classifiers by one or several algorithms, over several seeds, into one run folder, and print how they do on validation.

    What is finished is not trained again, so the same command can be called with more --seeds or other algorithms; --resume
    continues what was interrupted. Flags win over the data set's recipe for the algorithm, the recipe wins over defaults; all of
    it is printed.

    For instance: python -m experiments.train --dataset coloredmnist --algorithm erm,irm --seeds 5 --run runs/classifiers
    """

    data: DataOptions = DataOptions()
    run: RunOptions = RunOptions()
    algorithm: str = "erm"
    """Algorithms, comma-separated, or all; --describe tells about them."""
    label: str = ""
    """Attribute to predict; the data set's own label without it."""
    spurious: str = ""
    """Attributes that must not matter, comma-separated; the data set's own without it."""
    environment: str = ""
    """Attribute whose class is a row's environment; the data set's own environments without it."""
    seeds: int = 5
    """How many seeds, from --seed on: of weights, order and noise; the data stay."""
    seed: int = 0
    """The first of them. Reproduces a run on a CPU bit for bit."""
    training: TrainingFlags = TrainingFlags()
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of the algorithms as KEY=VALUE, or ALGORITHM.KEY=VALUE for one of them; may be repeated. --describe lists them."""
    cf: str | None = None
    """Counterfactual images, without their foreground, for algorithms that make them: mean, random, shuffle, tile, folder,
    dscm or none."""
    factual: str | None = None
    """Factual images, with another background: mrand, random, shuffle, fgsm, pgd, dscm or none."""
    saliency: str | None = None
    """Where the network may look: bbox (the foreground's bounding box), mask, or none (anywhere)."""
    saliency_weight: float | None = None
    """Weight of the penalty of looking elsewhere."""
    model: Path | None = None
    """Run folder of a trained model, which makes the counterfactuals for algorithms that train on such."""
    truth: bool = False
    """Let the true process make them instead: a bound, for data sets that know it."""
    counterfactuals: int = 1
    """How many counterfactuals of each training image."""
    data_fraction: float = 1.0
    """Share of the training rows that is trained on: drawn at random whatever their groups, the same for all algorithms and seeds."""
    box_noise: float | None = None
    """Instead of masks, their bounding boxes with each edge moved by up to this share of the box's side; 0 for exact boxes."""
    vectorize: bool = True
    """Train several seeds of one algorithm at once where that pays: a small network without batch norm, a single stage."""
    describe: bool = False
    """Print what the algorithms assume, need and can be set to, with the values that would hold here; train nothing."""

    @property
    def settings(self) -> tuple[str, ...]:
        """``KEY=VALUE`` of all settings of algorithms: flags of their own, and then ``--set``, which wins."""
        return (*(f"{name}={getattr(self, name)}" for name in SETTING_FLAGS if getattr(self, name) is not None), *self.set)

    def check(self) -> None:
        """Raises UserError for a number or a combination that makes no sense."""
        for name in ("seeds", "counterfactuals"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.data_fraction <= 1:
            raise UserError(f"--data-fraction {self.data_fraction} is a share of the training rows; it must lie in (0, 1]")
        if self.box_noise is not None and not 0 <= self.box_noise <= 1:
            raise UserError(f"--box-noise {self.box_noise} is a share of a box's sides; it must lie in [0, 1]")
        if self.model is not None and self.truth:
            raise UserError("--model and --truth are two sources of counterfactuals; give one of them")

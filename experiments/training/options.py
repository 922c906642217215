"""How a command line asks for classifiers. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import NotNegative, Range, Seed, Seeds, Share, check_ranges, within
from datasets.words import listed, once
from experiments.networks.config import ClassifierConfig
from experiments.training.field_help import field_help
from mechanisms.runs.command import Switch
from mechanisms.training.config import RunOptions, TrainingConfig

NEVER = 1e6  # clip and skip from here on touch no update
DEFAULTS = TrainingConfig(batch_size=128, optimizer="adam", learning_rate=1e-3, schedule="constant", warmup=0, weight_decay=0.0,
                          beta2=0.999, clip=NEVER, skip=NEVER, ema=0.0, validations=20, validation_rows=5000)
DEFAULT_EPOCHS = 10.0
Part = within(0, 1, above=True)
Copies = within(1, 1000)
_NO_FLAGS = ("seed", "device")  # which have flags of their own
_ALIASES = {"network": ["--backbone"]}
SETTING_FLAGS = ("cf", "factual", "saliency", "saliency_weight")
"""Options that are settings of every algorithm that has them, as ``--set KEY=VALUE`` is."""


def _given(flags: Any) -> dict[str, Any]:
    """Only what was asked for."""
    return {f.name: getattr(flags, f.name) for f in fields(flags) if getattr(flags, f.name) is not None}


def _flags(*configs: Any) -> Iterator[tuple[str, Any, Any]]:
    """The fields of configurations as flags that may be left out: None, of which a recipe or else the configuration decides."""
    for config in configs:
        hints, texts = get_type_hints(type(config), include_extras=True), field_help(type(config))
        for name in (f.name for f in fields(config) if f.name not in _NO_FLAGS):
            kind, *extras = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
            ours = DEFAULT_EPOCHS if name == "epochs" else getattr(config, name)
            shown = "none" if ours is None or name in ("clip", "skip") and ours >= NEVER else str(ours)
            told = "".join(f"; {extra.told}" for extra in extras if isinstance(extra, Range))
            default = f"(default: the recipe's or {shown}{told})"
            argument = tyro.conf.arg(help=texts[name], aliases=_ALIASES.get(name), help_behavior_hint=default)
            kept = [extra for extra in extras if isinstance(extra, Range)]
            yield name, Annotated[Switch if kind is bool else kind | None, *kept, argument], None


TrainingFlags = make_dataclass("TrainingFlags", [
    *_flags(ClassifierConfig(), DEFAULTS),
    ("device", Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="Where to compute.")], "auto")],
    namespace={"given": _given}, frozen=True)
TrainingFlags.__module__ = __name__
TrainingFlags.__doc__ = "What of network and training is asked for; a recipe of the data set, or else a default, says the rest."


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
    seeds: Seeds[int] = 5
    """How many seeds, from --seed on: of weights, order and noise; the data stay."""
    seed: Seed[int] = 0
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
    saliency_weight: NotNegative[float | None] = None
    """Weight of the penalty of looking elsewhere."""
    model: Path | None = None
    """Run folder of a trained model, which makes the counterfactuals for algorithms that train on such."""
    truth: bool = False
    """Let the true process make them instead: a bound, for data sets that know it."""
    counterfactuals: Copies[int] = 1
    """How many counterfactuals of each training image."""
    data_fraction: Part[float] = 1.0
    """Share of the training rows that is trained on: drawn at random whatever their groups, the same for all algorithms and seeds."""
    box_noise: Share[float | None] = None
    """Instead of masks, their bounding boxes with each edge moved by up to this share of the box's side; 0 for exact boxes."""
    vectorize: bool = True
    """Train several seeds of one algorithm at once where that pays: a small network without batch norm, a single stage."""
    describe: bool = False
    """Print what the algorithms assume, need and can be set to, with the values that would hold here; train nothing."""

    @property
    def algorithms(self) -> list[str]:
        """Names as they are given, or ``all``."""
        return listed(self.algorithm, "--algorithm")

    @property
    def spurious_names(self) -> list[str]:
        """Those of ``--spurious``; empty for the data set's own."""
        return listed(self.spurious, "--spurious")

    @property
    def given_settings(self) -> dict[str, Any]:
        """Settings of algorithms that are given by flags of their own."""
        return {name: getattr(self, name) for name in SETTING_FLAGS if getattr(self, name) is not None}

    @property
    def settings(self) -> tuple[str, ...]:
        """``KEY=VALUE`` of all settings of algorithms: flags of their own, and then ``--set``, which wins."""
        return (*(f"{name}={value}" for name, value in self.given_settings.items()), *self.set)

    def check(self) -> None:
        """Raises UserError for a number or a combination that makes no sense."""
        check_ranges(self)
        listed(self.algorithm, "--algorithm"), listed(self.spurious, "--spurious")
        once([text.partition("=")[0].replace("-", "_") for text in self.set], "--set")
        if self.model is not None and self.truth:
            raise UserError("--model and --truth are two sources of counterfactuals; give one of them")

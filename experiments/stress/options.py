"""How a command line asks for a stress test. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, Seed, check_ranges
from datasets.words import listed


@dataclass(frozen=True)
class Options:
    """Test classifiers on images under interventions on spurious attributes, made by the true process and by a learned model.

    For instance: python -m experiments.robustness --run runs/classifiers --model runs/model
    Or your own:  python -m experiments.robustness --dataset colourmnist --classifier my_model.py:build --weights w.safetensors
    """

    data: DataOptions = field(default_factory=DataOptions)
    run: Path | None = None
    """Run folder with classifiers of experiments.train; its data set is used. Without it, --dataset and --classifier say what to test."""
    algorithm: str = ""
    """Only these algorithms of the run, comma-separated."""
    rule: Literal["last", "iid", "worst-group", "oracle"] = "last"
    """Which weights of a training: of its end, best on validation as observed, best in validation's worst group, or best under
    the test's own shifts (which looks at what is tested)."""
    model: Path | None = None
    """Run folder of a trained model that makes the same stress tests; without it that of --run, if it holds one."""
    classifier: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Your own classifier too: file.py:function, which builds a module, or an exported program file.pt2; may be repeated. Either is
    code and is executed: give none from someone you do not trust."""
    weights: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Weights of --classifier: .safetensors, or a state dict of torch; one for each, in the same order."""
    name: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What tables call --classifier; its file's name without it."""
    outputs: Literal["auto", "logits", "probabilities", "log-probabilities"] = "auto"
    """What each --classifier answers with; auto: logits, but it asks where a few answers all lie in [0, 1], as probabilities do."""
    label: str = ""
    """Attribute that is predicted; what the classifiers were trained for, or the data set's own, without it."""
    spurious: str = ""
    """Attributes that must not matter, comma-separated; what the classifiers were trained for, or the data set's own, without it."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the images come from."""
    count: AtLeastOne[int | None] = None
    """How many images, at random, of distinct subjects; without it 1000, or as many as there are."""
    focus: Literal["saliency", "gradcam", "xgradcam", "deeplift", "integrated_gradients", "lime", "none"] = "saliency"
    """Where data sets know the foreground: the method that tells how much of what a classifier looks at is in it. Slow methods look at
    fewer images."""
    ood: Literal["mean", "random", "shuffle", "tile", "none"] = "mean"
    """Where data sets know the foreground: what fills its place to see whether a classifier misses it."""
    out: Path | None = None
    """Folder for robustness.md, .csv, .tsv, .json and .png; without it <run>/robustness."""
    seed: Seed[int] = 0
    """Of which images, and of the values that are drawn."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for a number or a combination that makes no sense."""
        check_ranges(self)
        listed(self.algorithm, "--algorithm"), listed(self.spurious, "--spurious")
        if self.run is None and not self.classifier:
            raise UserError("nothing to test: give --run, a folder with classifiers of experiments.train, or your own by --classifier")
        if self.run is None and (flags := [f"--{n}" for n in ("rule", "algorithm") if getattr(self, n) != getattr(Options, n)]):
            raise UserError(f"{' and '.join(flags)} chooses among the classifiers of a run: give --run, or leave it out")
        if self.run is not None and self.data != DataOptions():
            raise UserError(f"--run {self.run} says which data set is tested; leave --dataset and its options out")
        if self.outputs != "auto" and not self.classifier:
            raise UserError(f"--outputs {self.outputs} is about a --classifier of your own; the run's classifiers answer with logits")
        for flag, values in (("weights", self.weights), ("name", self.name)):
            if values and len(values) != len(self.classifier):
                raise UserError(f"--{flag} is given {len(values)} times, --classifier {len(self.classifier)} times; give one for each")

    @property
    def algorithms(self) -> list[str]:
        """Those of the run that are tested; empty for all."""
        return listed(self.algorithm, "--algorithm")

    @property
    def spurious_names(self) -> list[str]:
        """Those of ``--spurious``; empty for what the classifiers were trained for."""
        return listed(self.spurious, "--spurious")

    @property
    def own(self) -> list[tuple[str, Path | None, str]]:
        """Specification, weights and name of each ``--classifier``; None and empty where they are not given."""
        none = (None,) * len(self.classifier), ("",) * len(self.classifier)
        return list(zip(self.classifier, self.weights or none[0], self.name or none[1], strict=True))

    @property
    def folder(self) -> Path:
        return self.out or (self.run or Path("runs")) / "robustness"

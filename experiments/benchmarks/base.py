"""What a measurement is, and what measurements share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.base import CausalDataset, Split
from datasets.mnist.morpho import MorphoMNIST
from datasets.options import DataOptions
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation, evaluate
from dscm.evaluation.questions import draw_questions
from dscm.metrics.score import Score
from dscm.model import DSCM
from mechanisms.image.fit import train_image
from mechanisms.image.options import DEFAULTS
from mechanisms.training.config import RunOptions
from mechanisms.training.loop import fit
from pgm import options as attributes
from pgm.fit import train_attributes
from pgm.scm import AttributeSCM


@dataclass(frozen=True)
class Measurement:
    """A figure: how it is measured, and what it is compared with (None: for scale only)."""

    function: Callable[[Bench], tuple[float | None, str]]
    unit: str
    reference: float | None
    target: float | None
    higher: bool = False

    def measure(self, bench: Bench) -> dict[str, Any]:
        """``{value, unit, reference, target, met, note}``; value None where something needed is not given."""
        value, note = self.function(bench)
        met = None
        if value is not None and self.target is not None:
            met = value >= self.target if self.higher else value <= self.target
        return {"value": value, "unit": self.unit, "reference": self.reference, "target": self.target, "met": met, "note": note}


MEASUREMENTS: dict[str, Measurement] = {}


def measurement(name: str, unit: str, reference: float | None = None, target: float | None = None, higher: bool = False):
    """Register a function ``bench → value`` or ``bench → (value, note)``."""

    def register(function: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
        def measured(bench: Bench) -> tuple[float | None, str]:
            result = function(bench)
            return result if isinstance(result, tuple) else (result, "")

        MEASUREMENTS[name] = Measurement(measured, unit, reference, target, higher)
        return function

    return register


class Bench:
    """The data, and models trained for as long as a figure asks; each is made once, when it is first needed.

    Args:
        run: folder for what is trained.
        mnist: folder of MNIST's IDX files; ``official``: of official Morpho-MNIST files.
        count: held-out images that errors to the truth are averaged over, at most.
    """

    def __init__(self, run: Path, mnist: Path | None = None, official: Path | None = None, count: int = 4096, seed: int = 0,
                 device: str = "auto") -> None:
        self.run, self.mnist, self.official, self.count, self.seed, self.device = run, mnist, official, count, seed, device
        self._evaluations: dict[int, Evaluation] = {}
        self._models: dict[int, DSCM] = {}

    @cached_property
    def data(self) -> DataOptions:
        """8,000 training images: distinct digits of MNIST, or two renderings of each embedded one."""
        sizes = ("renderings=1", "train_digits=8000", "valid_digits=500") if self.mnist else ("renderings=2",)
        return DataOptions(data_dir=self.mnist, option=(*sizes, f"seed={self.seed}"))

    @cached_property
    def dataset(self) -> CausalDataset:
        dataset = self.data.open()
        for split in ("train", "valid", "test"):
            dataset.split(split)
        return dataset

    def model(self, seconds: int) -> DSCM:
        """A DSCM whose image mechanism was trained for so long."""
        if seconds not in self._models:
            folder = RunOptions(self.run / f"{seconds}s", overwrite=True)
            common = {"seed": self.seed, "device": self.device}
            training = replace(attributes.DEFAULTS, steps=attributes.DEFAULT_STEPS, **common)
            train_attributes(self.dataset, self.data, folder, training)
            training = replace(DEFAULTS, minutes=seconds / 60, validations=2, checkpoint_seconds=1e9, **common)
            train_image(self.dataset, self.data, folder, training)
            self._models[seconds] = DSCM.load(folder.run)
        return self._models[seconds]

    @cached_property
    def attribute_fit(self) -> tuple[AttributeSCM, float]:
        """The SCM fitted to 60,000 rows of the process, and the seconds that took; each epoch sees every row once."""
        rows = process_rows(60_000, self.seed)
        graph = MorphoMNIST().schema.fitted(rows)
        torch.manual_seed(self.seed)
        scm = AttributeSCM(graph)
        images = torch.zeros(60_000, 0, dtype=torch.uint8)
        train = Split("train", images, rows)
        valid = Split("valid", images[:2000], process_rows(2000, self.seed + 3))
        config = replace(attributes.DEFAULTS, steps=attributes.DEFAULT_STEPS, seed=self.seed, device=self.device)
        description = {"kind": "attributes", "graph": graph.to_dict(), "config": asdict(scm.config)}
        folder = self.run / "attributes"
        seconds = timed(lambda: fit(scm, train, valid, config, folder, description, RunOptions(overwrite=True)))
        return scm, seconds

    def score(self, seconds: int, variable: str, metric: str = "truth_l1") -> Score:
        """A figure of one intervention, of the model that was trained for so long."""
        if seconds not in self._evaluations:
            count = min(self.count, len(self.dataset.split("test")))
            questions = draw_questions(self.dataset, "test", count, self.seed)
            with_truth = tuple(q for q in questions.questions if self.dataset.has_truth([q.variable]))
            self._evaluations[seconds] = evaluate(self.model(seconds), self.dataset, replace(questions, questions=with_truth),
                                                  config=EvaluationConfig(parts=("truth",)))
        return self._evaluations[seconds].find(metric, f"do({variable})")[0]


def process_rows(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of the true process, attributes only: t = 0.5 + Gamma(10, 5), i = 64 + 191·σ(2(t − 2.5) + 0.5·u)."""
    random = np.random.default_rng(seed)
    thickness = 0.5 + random.gamma(10, 1 / 5, count)
    intensity = MorphoMNIST.mechanism(thickness, random.standard_normal(count))
    return {"thickness": torch.from_numpy(thickness).float(), "intensity": torch.from_numpy(intensity).float(),
            "digit": torch.from_numpy(random.integers(0, 10, count))}


def timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began

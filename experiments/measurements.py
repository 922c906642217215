"""What ``experiments.benchmark`` measures: one function a figure, with its reference and target beside it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.registry import open_dataset
from dscm.model import DSCM
from dscm.scores import score_truth
from experiments.benchmark import Options
from mechanisms.options import RunOptions


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
    """The data, and models trained for as long as a figure asks; each is made once, when it is first needed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._scores: dict[int, list[dict[str, Any]]] = {}
        self._models: dict[int, DSCM] = {}

    @cached_property
    def data(self) -> DataOptions:
        """8,000 training images: distinct digits of MNIST, or two renderings of each embedded one."""
        sizes = ("renderings=1", "train_digits=8000", "valid_digits=500") if self.options.mnist else ("renderings=2",)
        return DataOptions(data_dir=self.options.mnist, option=(*sizes, f"seed={self.options.seed}"))

    @cached_property
    def dataset(self):
        dataset = self.data.open()
        for split in ("train", "valid", "test"):
            dataset.split(split)
        return dataset

    def model(self, seconds: int) -> DSCM:
        """A DSCM whose image mechanism was trained for so long."""
        if seconds not in self._models:
            from dataclasses import replace

            from mechanisms import train as image
            from pgm import train as attributes

            folder = RunOptions(self.options.run / f"{seconds}s", overwrite=True)
            common = {"seed": self.options.seed, "device": self.options.device}
            training = replace(attributes.DEFAULTS, steps=attributes.DEFAULT_STEPS, **common)
            attributes.train_attributes(self.dataset, attributes.Options(self.data, folder, training))
            training = replace(image.DEFAULTS, minutes=seconds / 60, validations=2, checkpoint_seconds=1e9, **common)
            image.train_image(self.dataset, image.Options(self.data, folder, training))
            self._models[seconds] = DSCM.load(folder.run)
        return self._models[seconds]

    def scores(self, seconds: int) -> list[dict[str, Any]]:
        if seconds not in self._scores:
            self._scores[seconds] = score_truth(self.model(seconds), self.dataset, "test", self.options.count, self.options.seed)
        return self._scores[seconds]

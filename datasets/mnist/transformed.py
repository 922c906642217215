"""Transformed MNIST: canonical digits, and other digits that one of several mechanisms has acted upon.

mechanism, digit → image, where the image is ``M_k(clean)`` (Parascandolo, Kilbertus, Rojas-Carulla & Schölkopf 2018,
*Learning independent causal mechanisms*, section 5): translations by 4 pixels in eight directions, noise, inversion, and
more (:mod:`datasets.mnist.transforms`). Digits are padded to 32 × 32. Which mechanism acted on which clean image is known, so
that what an unsupervised method finds can be held against it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.base import SPLITS
from datasets.mnist.digits import DIGIT, DigitSplits
from datasets.mnist.transforms import parse
from datasets.registry import register
from datasets.schema import SchemaError, Variable
from datasets.unpaired import UnpairedDataset
from datasets.words import listed

NONE = "none"  # the last class of ``mechanism``, of no observed row: the clean image is its true counterfactual
_IMAGE = Variable("image", "image", ("digit", "mechanism"), shape=(1, 32, 32))


@register
@dataclass(eq=False)
class TransformedMNIST(DigitSplits, UnpairedDataset):
    """mechanism, digit → image; every second digit of a split is canonical, every other one is shown under each mechanism.

    ``do(mechanism)`` has a true counterfactual: the same digit, with its own noise, under another mechanism; under
    ``none`` it is the clean image.

    Args:
        transforms: names with commas between, see :func:`datasets.mnist.transforms.parse`.
        digits: which digits to keep, with commas between, as ``6`` or ``1,7``; all if empty.
        channels: 1 for grey, 3 for digits in colours of their own.

    The other options are those of :class:`datasets.mnist.digits.DigitSplits`.
    """

    name: ClassVar[str] = "transformed-mnist"
    label: ClassVar[str] = "digit"
    margin: ClassVar[int] = 2  # 28 → 32
    true_images_under: ClassVar[tuple[str, ...]] = ("mechanism",)
    variables: ClassVar[tuple[Variable, ...]] = (DIGIT, Variable("mechanism", "categorical", classes=("right", NONE)), _IMAGE)

    transforms: str = "ten"
    digits: str = ""
    channels: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transformations = parse(self.transforms, f"{self.title}: transforms")
        self._kept = sorted(int(word) for word in listed(str(self.digits), f"{self.title}: digits", DIGIT.classes, SchemaError))
        if self.channels not in (1, 3):
            raise SchemaError(f"{self.title}: channels={self.channels} must be 1 (grey) or 3 (colours)")
        self.mechanisms = tuple(transform.text for transform in self.transformations)
        self.variables = (DIGIT, Variable("mechanism", "categorical", classes=(*self.mechanisms, NONE)),
                          replace(_IMAGE, shape=(self.channels, 32, 32)))

    @cached_property
    def _sources(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Split → clean canonical images, clean images to be transformed, both uint8 ``(·, C, 32, 32)``, and the latter's digits."""
        found = {}
        for split, (images, labels) in self._digits.items():
            kept = np.isin(labels, self._kept) if self._kept else np.ones(len(labels), bool)
            if kept.sum() < 2:
                raise SchemaError(f"the {split} split of {self.title} has {kept.sum()} digits {self.digits or 'of any class'}; "
                                  "two halves need at least 2")
            digits, random = torch.from_numpy(images[kept]), np.random.default_rng([self.seed, SPLITS.index(split), len(SPLITS)])
            padded = F.pad(digits, (self.margin,) * 4).unsqueeze(1)
            if self.channels == 3:
                colours = torch.from_numpy(_hues(random.random(len(padded))))
                padded = (padded.float() * colours[:, :, None, None]).round().to(torch.uint8)
            canonical = torch.zeros(len(padded), dtype=torch.bool)
            canonical[torch.from_numpy(random.permutation(len(padded)))[:len(padded) // 2]] = True
            found[split] = padded[canonical], padded[~canonical], torch.from_numpy(labels[kept])[~canonical]
        return found

    def canonical(self, split: str) -> Tensor:
        return self._sources[split][0]

    def clean(self, split: str) -> Tensor:
        return self._sources[split][1].repeat_interleave(len(self.mechanisms), 0)

    def subjects(self, split: str) -> Tensor:
        return torch.arange(len(self._sources[split][1])).repeat_interleave(len(self.mechanisms))

    def load(self, split: str) -> dict[str, Tensor]:
        """Row ``d·K + k`` is digit ``d`` under mechanism ``k``."""
        _, clean, labels = self._sources[split]
        count, each = len(clean), len(self.mechanisms)
        made = [self._made(split, torch.arange(count), torch.full((count,), k)) for k in range(each)]
        return {"digit": labels.repeat_interleave(each), "mechanism": torch.arange(each).repeat(count),
                "image": torch.stack(made, 1).flatten(0, 1)}

    def true_counterfactual(self, split: str, index: Tensor, do: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exact: the clean digit and its noise stay, and another mechanism acts."""
        index, truth = self.intervened(split, index, do)
        if do:
            truth["image"] = self._made(split, index // len(self.mechanisms), truth["mechanism"]).float() / 255
        return truth

    def _made(self, split: str, subject: Tensor, mechanism: Tensor) -> Tensor:
        """Clean digits ``subject (B,)`` under ``mechanism (B,)``, uint8 ``(B, C, 32, 32)``."""
        images = self._sources[split][1][subject]
        for k, transform in enumerate(self.transformations):
            if len(rows := (mechanism == k).nonzero().flatten()):
                moved = transform(images[rows].float() / 255, self._noise(split, subject[rows]))
                images[rows] = (moved * 255).round().to(torch.uint8)
        return images

    def _noise(self, split: str, subject: Tensor) -> Tensor:
        """Standard normal noise of each subject, the same whenever it is asked for, ``(B, C, 32, 32)``."""
        keys = [np.random.SeedSequence([self.seed, SPLITS.index(split), int(s)]) for s in subject]
        drawn = [np.random.Generator(np.random.PCG64(key)).standard_normal((self.channels, 32, 32), np.float32) for key in keys]
        return torch.from_numpy(np.stack(drawn))


def _hues(turns: np.ndarray) -> np.ndarray:
    """Fully saturated, fully bright colours, float32 ``(N, 3)``, of hues in [0, 1)."""
    distance = np.abs((6 * turns[:, None] - np.array([0, 2, 4]) + 3) % 6 - 3)
    return np.clip(2 - distance, 0, 1).astype(np.float32)

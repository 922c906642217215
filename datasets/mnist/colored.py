"""Colored MNIST: the colour of a digit tells its (noisy) label better than its shape does, but not everywhere.

``label = [digit < 5]``, flipped with probability .25; ``colour = label``, flipped with probability .2 in the first
environment and .1 in the second; the image is the digit in channel ``colour``, the other channel is black (Arjovsky,
Bottou, Gulrajani & Lopez-Paz 2019, *Invariant risk minimization*, section 5.2). Tested under ``e=0.9``, where colours are
flipped with probability .9: shape is right about 75 % of the labels everywhere, colour about 85 %, then about 10 %.

``coloredmnist``, two colours and a label that is half of the digits, is not ``colourmnist`` (:mod:`datasets.mnist.hue`), ten hues and the
digit itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.base import Shift
from datasets.files.idx import Digits
from datasets.mnist.digits import DIGIT, PaintedDigits, random_halves, rows
from datasets.ranges import Share
from datasets.registry import register
from datasets.schema import SchemaError, Variable

SIZES = (14, 28)
_IMAGE = Variable("image", "image", ("digit", "colour"), shape=(2, 14, 14))
_ANNEAL = 190 / 501  # share of the training before the penalty has its full weight

# Full batches, plain Adam at a constant rate, the last weights; nothing is clipped, skipped or averaged.
_ALL = {"network": "mlp", "hidden": 256, "steps": 501, "batch_size": 1_000_000, "optimizer": "adam", "beta1": 0.9, "beta2": 0.999,
        "learning_rate": 1e-3, "l2": 1e-3, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "ema": 0.0, "clip": 1e9, "skip": 1e9}
# IRM's search; Rame et al. 2022 (*Fishr*, section 5.1) took the same for V-REx and Fishr. Chosen by the test environment: an upper bound.
# The script that printed their figures has (R_0 − R_1)², 4 times the variance, for V-REx, and for Fishr the sum over both environments,
# twice the mean: penalties are scaled alike. Before ``anneal`` the weight is 1 in either, which at these sizes is next to nothing.
# Their penalties are squares over full batches, Fishr's a sum over the head's entries, and one Adam goes through all updates.
_IRM = {"hidden": 390, "learning_rate": 4.898536566546834e-4, "l2": 1.10794568e-3, "penalty": 91257.18613115903, "anneal": _ANNEAL,
        "reset": False}
_WHOLE = {"unbiased": False}


@register
@dataclass(eq=False)
class ColoredMNIST(PaintedDigits):
    """digit → label → colour; digit, colour → image.

    Of MNIST's training part the first five sixths (50,000) are for training and the last sixth is the test split;
    MNIST's own test part is for validation, so that nothing published as a test result was selected on. Every
    split has two environments of equal size; under another law of the colours, ask for the shift.

    Args:
        size: 14 for every second pixel, as published, or 28.
        label_flip: probability that the label contradicts the digit.
        flip_0, flip_1: probability that the colour contradicts the label, in each environment.

    The other options are those of :class:`datasets.mnist.digits.DigitSplits`.
    """

    name: ClassVar[str] = "coloredmnist"
    lookalike: ClassVar[str] = "colourmnist"
    label: ClassVar[str] = "label"
    spurious: ClassVar[tuple[str, ...]] = ("colour",)
    true_images_under: ClassVar[tuple[str, ...]] = ("label", "colour")
    variables: ClassVar[tuple[Variable, ...]] = (
        DIGIT, Variable("label", "binary", ("digit",), classes=("5-9", "0-4")),
        Variable("colour", "binary", ("label",), classes=("red", "green")), _IMAGE)
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "*": _ALL, "irm": {**_IRM, **_WHOLE}, "vrex": {**_IRM, **_WHOLE, "penalty": 4 * _IRM["penalty"]},
        "fishr": {**_IRM, "penalty": 2 * _IRM["penalty"], "memory": 0.0, "summed": True}}

    size: int = 14
    label_flip: Share[float] = 0.25
    flip_0: Share[float] = 0.2
    flip_1: Share[float] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in SIZES:
            raise SchemaError(f"{self.named_apart}: size={self.size} must be 14 or 28")
        self.variables = (*type(self).variables[:-1], replace(_IMAGE, shape=(2, self.size, self.size)))

    def parts(self, source: Mapping[str, Digits]) -> dict[str, Digits]:
        """Five sixths of the training part, the test part, and the last sixth of the training part."""
        train = source["train"]
        cut = len(train[0]) - len(train[0]) // 6
        return {"train": rows(train, slice(cut)), "valid": source["test"], "test": rows(train, slice(cut, None))}

    def noise(self, split: str, digit: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """Whether label and colour are flipped, 0 or 1."""
        flip = np.where(random_halves(len(digit)).numpy() == 0, self.flip_0, self.flip_1)
        label, colour = random.random((2, len(digit)))
        return {"label": torch.from_numpy(label < self.label_flip).long(), "colour": torch.from_numpy(colour < flip).long()}

    def attributes(self, digit: Tensor, noise: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        label = do.get("label", (digit < 5).long() ^ noise["label"])
        return {"digit": digit, "label": label, "colour": do.get("colour", label ^ noise["colour"])}

    def paint(self, digits: Tensor, values: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        grey = digits[:, ::28 // self.size, ::28 // self.size]
        image = torch.zeros(len(grey), 2, self.size, self.size, dtype=torch.uint8)
        image[torch.arange(len(grey)), values["colour"]] = grey
        return image

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``colour``: the brighter of the two channels, int64 ``(B,)``."""
        return {"colour": images.sum((2, 3)).argmax(1)}

    def environments(self, split: str) -> Tensor:
        return random_halves(len(self._digits[split][0]))

    def shifts(self) -> Mapping[str, Shift]:
        """``e=0.9``: the colour contradicts the label with probability .9."""
        def contradicting(attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            label = attributes["label"]
            return {"colour": label ^ (torch.rand(len(label), generator=generator) < 0.9).long()}

        return {"e=0.9": contradicting}

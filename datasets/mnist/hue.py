"""Colour-MNIST: digits in one of ten hues, which goes with the digit (confounded) or does not.

With probability s the hue is the digit's own, ``colour = digit``; else it is uniform among all ten. The image is the grey
digit times the hue's RGB. Two environments differ in s, both around ``strength``; at 0 digit and colour are independent.

``colourmnist``, ten hues and the digit as label, is not ``coloredmnist`` (:mod:`datasets.mnist.colored`), two colours and a noisy label
of two classes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.base import Shift
from datasets.mnist.digits import DIGIT, PaintedDigits, random_halves
from datasets.ranges import Share
from datasets.registry import register
from datasets.schema import SchemaError, Variable

PAD = 2  # 28 → 32, which networks can halve five times
HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "indigo", "purple", "pink")
PALETTE = torch.tensor([colorsys.hsv_to_rgb(k / 10, 1.0, 1.0) for k in range(10)])  # (10, 3): every 36 degrees of the colour circle
_TINTS = (PALETTE.unsqueeze(-1) * torch.arange(256)).round().to(torch.uint8)  # (10, 3, 256): hue, channel, grey level
_COLOUR = Variable("colour", "categorical", ("digit",), classes=HUES)


@register
@dataclass(eq=False)
class ColourMNIST(PaintedDigits):
    """digit → colour (unless strength is 0); digit, colour → image, RGB, padded to 32×32. The label is the digit itself.

    Args:
        strength: probability s that the colour is taken from the digit, on average over the two environments.
        gap: s is strength·(1 + gap) in the first environment and strength·(1 − gap) in the second.

    The other options are those of :class:`datasets.mnist.digits.DigitSplits`.
    """

    name: ClassVar[str] = "colourmnist"
    lookalike: ClassVar[str] = "coloredmnist"
    border: ClassVar[int] = PAD
    label: ClassVar[str] = "digit"
    spurious: ClassVar[tuple[str, ...]] = ("colour",)
    true_images_under: ClassVar[tuple[str, ...]] = ("colour",)
    variables: ClassVar[tuple[Variable, ...]] = (DIGIT, _COLOUR, Variable("image", "image", ("digit", "colour"), shape=(3, 32, 32)))

    strength: Share[float] = 0.95
    gap: Share[float] = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength * (1 + self.gap) > 1:
            raise SchemaError(f"{self.named_apart}: gap={self.gap} must lie in [0, 1] and leave strength·(1 + gap) at most 1, "
                              f"with strength={self.strength}")
        if self.strength == 0:
            self.variables = (DIGIT, replace(_COLOUR, parents=()), type(self).variables[-1])

    def noise(self, split: str, digit: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """Whether the colour is taken from the digit, and what it is otherwise."""
        strength = np.where(self.environments(split).numpy() == 0, 1 + self.gap, 1 - self.gap) * self.strength
        tied, free = random.random(len(digit)) < strength, random.integers(10, size=len(digit))
        return {"tied": torch.from_numpy(tied), "free": torch.from_numpy(free)}

    def attributes(self, digit: Tensor, noise: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"digit": digit, "colour": do.get("colour", torch.where(noise["tied"], digit, noise["free"]))}

    def paint(self, digits: Tensor, values: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        image = torch.zeros(len(digits), 3, 28, 28, dtype=torch.uint8)
        for colour in values["colour"].unique().tolist():
            members = values["colour"] == colour
            image[members] = _TINTS[colour][:, digits[members].long()].transpose(0, 1)
        return F.pad(image, (PAD, PAD, PAD, PAD))

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``colour``: the hue whose direction in RGB is nearest to that of the mean pixel, int64 ``(B,)``."""
        mean = images.mean((2, 3))
        return {"colour": (mean @ F.normalize(PALETTE.to(images), dim=1).T).argmax(1)}

    def environments(self, split: str) -> Tensor:
        return random_halves(len(self._digits[split][0]))

    def shifts(self) -> Mapping[str, Shift]:
        """``independent``: a uniform hue; ``reversed``: the hue of 9 − digit."""
        def independent(attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {"colour": torch.randint(10, attributes["digit"].shape, generator=generator)}

        return {"independent": independent, "reversed": lambda attributes, generator: {"colour": 9 - attributes["digit"]}}

"""GridMask: images with a regular grid of squares dropped, whatever they show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.ranges import Positive, Share
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy, require
from experiments.algorithms.mixup import uniform
from experiments.augmenters.regions import GREY


@dataclass(frozen=True)
class GridMaskSettings:
    """Of GridMask; defaults are the published ones for ImageNet, whose lengths of 96 to 224 pixels are shares of its 224."""

    shortest: Positive[float] = 96 / 224
    """Least distance of one square from the next, as a share of the image's shorter side."""
    longest: Positive[float] = 1.0
    """Greatest such distance."""
    ratio: Share[float] = 0.6
    """Share of that distance that is kept between squares: a square's side is the rest."""
    probability: Share[float] = 0.8
    """Of an image's having squares at all, at the end of the rise."""
    rise: Share[float] = 0.8
    """Share of the training over which the probability rises linearly from 0; 0: it does not."""


class GridMask(Algorithm):
    """CE(f(x·g + ½·(1 − g)), y), g a grid of squares of zeros, turned by a random angle (Chen et al. 2020, *GridMask data
    augmentation*, section 3).

    With the distance d ~ U(shortest, longest) of the image's side, each d×d tile has one square of zeros of side (1 − ratio)·d:
    (1 − ratio)² of all pixels. d, both offsets and the angle are each image's own. What is dropped is grey, .5: as published, g
    multiplies images whose mean was taken off before.
    """

    name = "gridmask"
    title = "GridMask"
    assumes = "any part of the foreground suffices for the label; it does not know of spurious attributes"
    settings = GridMaskSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        super().check(settings)
        require(settings.shortest <= settings.longest, "shortest", settings.shortest, f"not exceed longest={settings.longest}")

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        images, options = batch["image"], self.options
        whether, *chances = uniform(noise(len(images), 5)).unbind(1)
        likely = options.probability * (min(1.0, progress / options.rise) if options.rise else 1.0)
        dropped = grid(chances, images.shape[-2:], options) & (whether < likely)[:, None, None]
        losses = cross_entropy(self.network(images.masked_fill(dropped[:, None], GREY)), batch["label"])
        return {"loss": losses + self.penalty_of_weights(), "risk": losses}


def grid(chances: list[Tensor], size: tuple[int, int], settings: GridMaskSettings) -> Tensor:
    """Pixels in squares, bool ``(B, H, W)``.

    Args:
        chances: four draws from [0, 1), ``(B,)`` each: of the distance, two offsets, the angle in turns.
    """
    height, width = size
    distance, down, right, turn = (chance.double()[:, None, None] for chance in chances)
    distance = min(size) * (settings.shortest + (settings.longest - settings.shortest) * distance)
    y, x = (torch.arange(n, device=turn.device) - (n - 1) / 2 for n in (height, width))
    y, x, angle = y[:, None], x[None], 2 * math.pi * turn
    along, across = y * angle.cos() - x * angle.sin(), y * angle.sin() + x * angle.cos()
    side = 1 - settings.ratio
    return ((along / distance + down) % 1 < side) & ((across / distance + right) % 1 < side)

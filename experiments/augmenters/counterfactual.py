"""Counterfactual images: the foreground is gone, so the label is "not y".

What is replaced is the foreground's *bounding rectangle*, so that its shape does not leak (Chang et al. 2021, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.errors import UserError
from experiments.augmenters.base import Augmenter, Context, normal, uniform
from experiments.augmenters.ready import as_images
from experiments.augmenters.regions import GREY, coloured, inside, rectangles, shuffled, tiled


class Fill(Augmenter):
    """Another content of the foreground's bounding rectangle; all around it stays. A full mask has a rectangle like any other."""

    kind = "counterfactual"

    def stays(self, masks: Tensor) -> Tensor:
        return ~self.replaced(masks)

    def replaced(self, masks: Tensor) -> Tensor:
        """Pixels of the rectangles, bool ``(B, H, W)``."""
        return inside(rectangles(masks), *masks.shape[1:])


@dataclass(frozen=True)
class Mean(Fill):
    """One grey, 0.5 in all channels: the published networks' mean of all pixels, which is 0 after their normalisation."""

    name = "mean"
    title = "grey"
    grey: float = GREY

    def __post_init__(self) -> None:
        if not 0 <= self.grey <= 1:
            raise UserError(f"grey={self.grey} must lie in [0, 1]")

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return torch.full_like(images, self.grey)


class RandomColour(Fill):
    """U(0, 1) for each image and channel, + N(0, .2) for each pixel, clamped to [0, 1]."""

    name = "random"
    title = "random colour"

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return coloured(uniform(generator, images, *images.shape[:2]), normal(generator, images, *images.shape))


class Shuffle(Fill):
    """The rectangle's own pixels in a random order: colours stay, shape and texture go."""

    name = "shuffle"
    title = "pixels shuffled"

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return shuffled(images, self.replaced(masks), generator)


class Tile(Fill):
    """The largest strip of background of full width or height, repeated (Xiao et al. 2020, *Noise or Signal*, Only-BG-T).

    The strip continues periodically from where it is. Where the rectangle reaches all four borders there is no strip, and the
    image becomes grey, as by ``mean``.
    """

    name = "tile"
    title = "strip tiled"

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return tiled(images, rectangles(masks))


class Folder(Fill):
    """What in-painting has made of the rectangle before: pixels of ``ready``, see :mod:`experiments.augmenters.ready`."""

    name = "folder"
    title = "in-painted"
    needs = frozenset({"masks", "ready"})

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return as_images(context["ready"], images)


class Model(Augmenter):
    """The whole of ``ready``: what a DSCM makes of the image under do(label = another class). Needs no masks."""

    name = "dscm"
    title = "causal model"
    kind = "counterfactual"
    needs = frozenset({"ready"})

    def make(self, images: Tensor, masks: Tensor | None, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return as_images(context["ready"], images)

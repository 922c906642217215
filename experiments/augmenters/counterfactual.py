"""Counterfactual images: the foreground is gone, so the label is "not y".

What is replaced is the foreground's *bounding rectangle*, so that its shape does not leak (Chang et al. 2021, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.errors import UserError
from experiments.augmenters.base import Augmenter, Coloured, Context, Modelled
from experiments.augmenters.ready import as_images
from experiments.augmenters.regions import GREY, inside, rectangles, shuffled, tiled


class Fill(Augmenter):
    """Another content of the foreground's bounding rectangle; all around it stays. A full mask has a rectangle like any other.

    There is one rectangle for each image: of several boxes, such as two animals' in opposite corners of a camera trap's image, it
    is that around all of them, and hardly any background may be left.
    """

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


class RandomColour(Coloured, Fill):
    __doc__ = Coloured.__doc__


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


class CausalModel(Modelled, Augmenter):
    """The whole of ``ready``: what a DSCM makes of the image under do(label = another class). Needs no masks."""

    kind = "counterfactual"

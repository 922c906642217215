"""Factual images: the foreground stays, bit for bit, on another background; so does the label (Chang et al. 2021, §3.2).

What stays is the mask itself, not its rectangle. A full mask leaves no background, and the image is returned as it is.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.ranges import Positive, as_setting, check_ranges
from experiments.augmenters.base import Augmenter, Coloured, Context, Modelled, uniform
from experiments.augmenters.regions import GREY, continued, has_foreground, inside, rectangles, shuffled, taken
from experiments.networks.base import evaluating


class Background(Augmenter):
    """Another background."""

    kind = "factual"
    keeps_label = True

    def stays(self, masks: Tensor) -> Tensor:
        return masks


class RandomBackground(Coloured, Background):
    __doc__ = Coloured.__doc__


class ShuffledBackground(Background):
    """The background's own pixels in a random order, within each image."""

    name = "shuffle"
    title = "pixels shuffled"

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return shuffled(images, ~masks, generator)


class OtherBackground(Background):
    """The background of a random image of *another class* of the batch, which has no foreground there: its strip is tiled over it.

    Where that image's foreground was, its bounding rectangle shows its largest strip of background, repeated (grey where it
    has none; :func:`experiments.augmenters.regions.tiled`), so that not even the other class's shape is seen. An image for
    which the batch has no image of another class with a foreground is returned as it is. Of several processes, each looks at
    its own rows of the batch.
    """

    name = "mrand"
    title = "of another class"

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        chances = torch.rand(len(images), len(images), generator=generator, device=generator.device).to(images.device)
        valid = (labels[:, None] != labels) & has_foreground(masks)  # (image, source)
        source = torch.where(valid, chances, -1.0).argmax(1)
        boxes, (height, width) = rectangles(masks), images.shape[2:]
        places, without = continued(boxes, height, width)
        covered = inside(boxes, height, width)
        unmoved = torch.arange(height * width, dtype=places.dtype, device=places.device)
        replaceable = valid.any(1)
        source = torch.where(replaceable, source, torch.arange(len(images), device=source.device))
        places = torch.where((covered[source] & replaceable[:, None, None]).flatten(1), places[source], unmoved)
        new = taken(images, places, source)
        grey = replaceable & without[source]
        return new.masked_fill_(grey[:, None, None, None], GREY) if grey.any() else new


@dataclass(frozen=True)
class Attack(Background):
    """The background that misleads the network most: steps of ascent of −log softmax(f(x'))_y within ±eps of each pixel, in [0, 1].

    x' ← clip(x' + step · sign ∂loss/∂x'), from x + U(−eps, eps); gradients are of the image's own loss, and no parameter gets any.
    The network is in eval mode meanwhile and then has the modes that it had; a callable that is no module has to see to that itself.

    Published sizes, eps .6 and steps of 1.25·eps, are of images normalised to 2x − 1, in [−1, 1]; those of x in [0, 1] are half as
    large, .3 and .375.

    Attributes:
        eps: the most that a pixel changes; images are in [0, 1].
        step: of each update.
        steps: how many.
        until_misled: whether an image stays as it is from when the network no longer predicts y.
    """

    needs = frozenset({"masks", "network"})
    until_misled: ClassVar[bool] = False
    eps: Positive[float] = 0.3
    step: Positive[float] = 0.375
    steps: Positive[int] = 1

    def __post_init__(self) -> None:
        check_ranges(self, as_setting)

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        network, free = context["network"], ~masks[:, None]
        low, high = (images - self.eps).clamp(0, 1), (images + self.eps).clamp(0, 1)
        start = images + self.eps * (2 * uniform(generator, images, *images.shape) - 1)
        new = torch.where(free, start.clamp(0, 1), images)
        with evaluating(network) if isinstance(network, nn.Module) else nullcontext():
            for _ in range(self.steps):
                with torch.enable_grad():
                    new.requires_grad_()
                    logits = network(new).float()
                    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), new)
                moves, new = free, new.detach()
                if self.until_misled:
                    moves = free & (logits.argmax(1) == labels)[:, None, None, None]
                new = torch.where(moves, (new + self.step * gradient.sign()).clamp(low, high), new)
        return new


class FGSM(Attack):
    """One step of 1.25·eps from a random start (Wong, Rice & Kolter 2020, *Fast is better than free*)."""

    name = "fgsm"
    title = "FGSM"


@dataclass(frozen=True)
class PGD(Attack):
    """As many as 40 steps of 1.25·eps from a random start, of each image until it misleads (Chang et al. 2021).

    Such steps are larger than those of Madry et al. 2018, 2.5·eps/40, and jump from one side of ±eps to the other.
    """

    name = "pgd"
    title = "PGD"
    until_misled = True
    steps: Positive[int] = 40


class CausalModel(Modelled, Augmenter):
    """The whole of ``ready``: what a DSCM, or the true process, makes of the image under do(spurious attributes). Needs no masks."""

    kind = "factual"
    keeps_label = True

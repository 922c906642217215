"""What every augmenter provides: images that differ from given ones in a known region, and only there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.schema import SchemaError
from experiments.augmenters.ready import as_images
from experiments.augmenters.regions import coloured, has_foreground
from mechanisms.runs.files import RunError

Context = Mapping[str, Any]


@dataclass(frozen=True)
class Augmenter:
    """x' = stays · x + (1 − stays) · new: pure and seeded, on any device, without gradients.

    The same state of the generator gives the same images. Each image's result is a function of its own pixels, mask, label
    and random numbers, so no pixel comes from another image, unless the class says so. **An image whose mask is empty is
    returned as it is**: it is not known what in it causes its label, so nothing could be said of the label of another one;
    :func:`experiments.augmenters.regions.has_foreground` says which these are, and a counterfactual loss leaves them out.

    Attributes:
        name: as on the command line.
        title: as over a column of a figure.
        kind: ``counterfactual`` or ``factual``.
        keeps_label: whether y is the label of x' too; if not, x' is labelled "not y".
        needs: of ``masks`` and what is given by name, ``network`` (a module or callable, images → logits ``(B, ≥K)``) and
            ``ready`` (images that were made before, ``(B, C, H, W)``, float in [0, 1] or uint8).
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    keeps_label: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"masks"})

    # ------------------------------------------------------------------------------------------------ to provide
    def stays(self, masks: Tensor) -> Tensor:
        """Which pixels are not to change, bool ``(B, H, W)``, of images that have a foreground."""
        raise NotImplementedError(f"{type(self).__name__} must define stays(masks)")

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        """New images ``(B, C, H, W)`` in [0, 1], in memory of their own; what they show where pixels stay does not matter.

        Random numbers are drawn in an order and number that do not depend on what the images show, so that no image's result
        depends on another's.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make(images, masks, labels, generator, context)")

    # ------------------------------------------------------------------------------------------------ derived
    def __call__(self, images: Tensor, masks: Tensor | None, labels: Tensor, generator: torch.Generator, **context: Any) -> Tensor:
        """New images, of the shape, dtype and device of the given ones.

        Args:
            images: float in [0, 1], ``(B, C, H, W)``.
            masks: bool ``(B, H, W)``, true in the foreground; None only where ``needs`` has no masks.
            labels: int64 ``(B,)``.
            generator: may live on another device; its own decides what is drawn.
            context: what else ``needs`` names; the rest is ignored.

        Raises:
            SchemaError: for images, masks or labels of other kinds or sizes.
            RunError: where something that is needed is not given.
        """
        self._check(images, masks, labels, context)
        with torch.no_grad():
            new = self.make(images, masks, labels, generator, context)
            if "masks" not in self.needs:
                return new
            stays = self.stays(masks) | ~has_foreground(masks)[:, None, None]
            return torch.where(stays[:, None], images, new, out=new)

    def _check(self, images: Tensor, masks: Tensor | None, labels: Tensor, context: Context) -> None:
        what = f"{self.kind} augmenter {self.name!r}"
        if images.ndim != 4 or not images.is_floating_point():
            raise SchemaError(f"{what}: images are {images.dtype} of shape {tuple(images.shape)}; they must be float in [0, 1], "
                              "(B, C, H, W)")
        if tuple(labels.shape) != (len(images),):
            raise SchemaError(f"{what}: labels have shape {tuple(labels.shape)} for {len(images)} images; give one class for each")
        if "masks" in self.needs:
            check_masks(images, masks, what)
        for name in sorted(self.needs - {"masks"}):
            if context.get(name) is None:
                raise RunError(f"{what} needs {name}={_NEEDED[name]}")
        if "ready" in self.needs and context["ready"].shape != images.shape:
            raise SchemaError(f"{what}: ready images have shape {tuple(context['ready'].shape)}, but the images {tuple(images.shape)}; "
                              "make one of the same size for each")


_NEEDED = {"network": "the classifier that is to be misled, images → logits", "ready": "images that were made before, one for each"}


def check_masks(images: Tensor, masks: Tensor | None, what: str) -> None:
    """Raises SchemaError unless there is one bool mask of its image's size for each image."""
    if masks is None:
        raise SchemaError(f"{what} needs the foreground's masks, bool {(len(images), *images.shape[2:])}; take a data set that has them")
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise SchemaError(f"{what}: masks are {masks.dtype} of shape {tuple(masks.shape)}; they must be bool, (B, H, W), true in the "
                          "foreground")
    if masks.shape[1:] != images.shape[2:]:
        (high, wide), (tall, broad) = masks.shape[1:], images.shape[2:]
        raise SchemaError(f"{what}: masks are {high}×{wide} (height × width), but images {tall}×{broad}; resize masks with their images, "
                          "by nearest neighbours")
    if len(masks) != len(images):
        raise SchemaError(f"{what}: {len(masks)} masks for {len(images)} images; give one for each")


# -------------------------------------------------------------------------------------------------------- contents that both kinds have
class Coloured:
    """U(0, 1) for each image and channel, + N(0, .2) for each pixel, clamped to [0, 1]."""

    name = "random"
    title = "random colour"

    def make(self, images: Tensor, masks: Tensor, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return coloured(uniform(generator, images, *images.shape[:2]), normal(generator, images, *images.shape))


class Modelled:
    """The whole of ``ready``, which a causal model has made. Needs no masks."""

    name = "dscm"
    title = "causal model"
    needs = frozenset({"ready"})

    def make(self, images: Tensor, masks: Tensor | None, labels: Tensor, generator: torch.Generator, context: Context) -> Tensor:
        return as_images(context["ready"], images)


# -------------------------------------------------------------------------------------------------------- random numbers
def uniform(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    """Draws from [0, 1) of any shape, with the dtype and device of ``like``."""
    return torch.rand(shape, generator=generator, device=generator.device).to(like)


def normal(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    """Standard normal draws of any shape, with the dtype and device of ``like``."""
    return torch.randn(shape, generator=generator, device=generator.device).to(like)

"""Geometric augmentation by torchvision's transforms: masks and boxes go where their image goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.schema import SchemaError

Batch = Mapping[str, Tensor]
OTHERS = ("counterfactual", "relabelled", "ready")  # columns of further images of a row, ``(B, …, C, H, W)``


@dataclass(frozen=True)
class GeometricTransform:
    """One of torchvision's v2 transforms, drawn anew for each image and done alike to its mask and boxes.

    An augmentation as :mod:`mechanisms.training.augment` has them: ``(batch, generator, rank, world) → batch``. Random numbers are a
    function of the generator and of a row's place in the global batch alone; torch's own stream is left as it was.

    Attributes:
        transform: any of ``torchvision.transforms.v2``, also composed; all images must come out of one size. Its random
            numbers are drawn on the processor.
    """

    transform: Callable[[dict[str, Any]], dict[str, Any]]

    def __call__(self, batch: Batch, generator: torch.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The batch with ``image`` ``(B, C, H, W)`` and, if it has them, ``mask`` (bool, ``(B, H, W)``), ``boxes`` (``(B, K, 4)``:
        left, top, right, bottom in pixels) and other images of the same rows (:data:`OTHERS`) transformed; all else as it is.

        Raises:
            SchemaError: for masks of another size than their images; for images that the transform refuses, or that come out of
                several sizes.
        """
        from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image, Mask

        images = batch["image"]
        rows, size = len(images), tuple(images.shape[-2:])
        if "mask" in batch and tuple(batch["mask"].shape) != (rows, *size):
            raise SchemaError(f"masks of shape {tuple(batch['mask'].shape)} cannot follow images of shape {tuple(images.shape)}; give one "
                              "of the same height and width for each")
        kinds = {"image": Image, **dict.fromkeys(OTHERS, Image), "mask": lambda mask: Mask(mask.to(torch.uint8)),
                 "boxes": lambda boxes: BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=size)}
        seeds = torch.randint(2**62, (rows * world,), generator=generator, device=generator.device)[rank * rows : (rank + 1) * rows]
        moved: dict[str, list[Tensor]] = {name: [] for name in kinds if name in batch}
        with torch.random.fork_rng(devices=[]):
            for row, seed in enumerate(seeds.tolist()):
                torch.default_generator.manual_seed(seed)
                try:
                    transformed = self.transform({name: kinds[name](batch[name][row]) for name in moved})
                except ValueError as error:
                    raise SchemaError(f"images of {size[0]}×{size[1]} (height × width) cannot be transformed: {error}") from error
                for name, values in moved.items():
                    values.append(transformed[name].as_subclass(Tensor))
        if len(sizes := {tuple(image.shape) for image in moved["image"]}) > 1:
            raise SchemaError(f"the transform makes images of several sizes, {' and '.join(map(str, sorted(sizes)))}; end it with a crop "
                              "or resizing to one size")
        new = {name: torch.stack(values) for name, values in moved.items()}
        return {**batch, **new, **({"mask": new["mask"].bool()} if "mask" in new else {})}


def crop_and_flip(height: int, width: int, padding: int = 0, flip: float = 0.5) -> GeometricTransform:
    """A random window of that size, of the image with a border of zeros, ``padding`` wide, around it; mirrored with probability ``flip``.

    Raises:
        SchemaError: when an image is smaller than the window.
    """
    from torchvision.transforms import v2

    return GeometricTransform(v2.Compose([v2.RandomCrop((height, width), padding=padding or None), v2.RandomHorizontalFlip(flip)]))

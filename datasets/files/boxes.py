"""Bounding boxes as masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.schema import SchemaError

_REMEDY = "a box is left, top, right, bottom in pixels of the image as it is, right and bottom excluded"


def boxes_to_masks(boxes: Tensor | Sequence[Tensor | Sequence[Sequence[float]]], size: tuple[int, int], where: str = "boxes") -> Tensor:
    """Pixels that any of an image's boxes touches, bool ``(N, H, W)``.

    A box is left, top, right, bottom in pixels from the image's top left corner, right and bottom excluded; what protrudes from
    the image is cut off. A box of no area is none: such are left where a crop leaves nothing of a box, and pad images of fewer
    boxes. An image without boxes has an empty mask.

    Args:
        boxes: ``(N, K, 4)``, or for each image ``(K_n, 4)``, K_n ≥ 0.
        size: height and width of the images.
        where: whose boxes these are, for messages.

    Raises:
        SchemaError: for boxes of another shape, that are not finite, end before they begin, or lie outside the image.
    """
    height, width = size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for number, (mask, given) in enumerate(zip(masks, boxes, strict=True)):
        own = torch.as_tensor(given, dtype=torch.float64)
        own = own.reshape(0, 4) if own.numel() == 0 else own
        if own.ndim != 2 or own.shape[1] != 4:
            raise SchemaError(f"{where}: row {number} has boxes of shape {tuple(own.shape)}, but it must be (K, 4): {_REMEDY}")
        for left, top, right, bottom in own.tolist():
            told = f"{where}: row {number}: the box {left:g}, {top:g}, {right:g}, {bottom:g}"
            if not all(map(math.isfinite, (left, top, right, bottom))) or right < left or bottom < top:
                raise SchemaError(f"{told} is not finite or ends before it begins; {_REMEDY}")
            if right == left or bottom == top:
                continue
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                raise SchemaError(f"{told} lies outside the image, which is {height}×{width} (height × width); {_REMEDY}")
            mask[max(0, math.floor(top)):math.ceil(bottom), max(0, math.floor(left)):math.ceil(right)] = True
    return masks

"""Images of another kind than a data set's own, to see what carries over: digits of other writers, clothes, other alphabets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.files.folder import image_paths, read_images
from datasets.files.idx import PREFIX, has_idx, read_digits

AT_MOST = 2000  # images of a folder


def images_from(source: Path, shape: tuple[int, int, int], margin: int) -> Tensor:
    """Images of a folder of IDX files (their test part), or of image files in it and its sub-folders; at most 2,000, drawn at random.

    Args:
        shape: ``(channels, height, width)`` to which they are brought.
        margin: pixels of it on each side that are black padding, see :func:`datasets.files.folder.read_images`.

    Returns:
        Float in [0, 1], ``(N, C, H, W)``.

    Raises:
        UserError: see :func:`datasets.files.folder.image_paths` and :func:`datasets.files.idx.read_digits`.
    """
    if not has_idx(source, PREFIX["test"]):
        paths = image_paths(source, nested=True)
        return read_images([paths[k] for k in _some(len(paths))], shape, margin).float() / 255
    images = torch.from_numpy(read_digits(source, PREFIX["test"])[0]).unsqueeze(1).float() / 255
    images = images[_some(len(images))]
    size = [side - 2 * margin for side in shape[1:]]
    if tuple(images.shape[2:]) != tuple(size):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return F.pad(images, (margin,) * 4).expand(-1, shape[0], -1, -1)


def sklearn_digits(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """scikit-learn's 8 × 8 digits, drawn 20 pixels high and centred by mass as MNIST's are, and their labels.

    Of images in colour all channels are alike, white on black.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    height, width = shape[1:]
    drawn = F.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    # MNIST's strokes are nearly black and white; upscaled grey levels are not
    drawn = ((drawn - 0.25) / 0.5).clamp(0, 1)
    images = torch.zeros(len(drawn), shape[0], height, width)
    grid = torch.arange(20).float()
    for image, digit in zip(images, drawn[:, 0], strict=True):
        mass = digit.sum()
        y, x = ((digit.sum(k) * grid).sum() / mass for k in (1, 0))
        top, left = round(height / 2 - 0.5 - float(y)), round(width / 2 - 0.5 - float(x))
        image[:, top:top + 20, left:left + 20] = digit
    return images, torch.from_numpy(data.target).long()


def _some(count: int) -> Tensor:
    """At most :data:`AT_MOST` indices below ``count``, ascending, always the same ones."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:AT_MOST].sort().values

"""All images of one folder as an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.errors import UserError
from datasets.images import ImageFiles, broken_file

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_COMMON = "png, jpg, jpeg, bmp, gif, tif or webp"


def pictures(folder: Path) -> list[Path]:
    """Image files directly in a folder, by their endings, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def image_paths(folder: Path) -> list[Path]:
    """:func:`pictures` of a folder that must have some.

    Raises:
        UserError: for a folder that is missing or without any.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist")
    if not (found := pictures(folder)):
        raise UserError(f"folder {folder} is empty: it has no file that ends in {_COMMON}")
    return found


def common_size(paths: list[Path]) -> tuple[int, int]:
    """``(height, width)`` that all image files have.

    Raises:
        UserError: for broken files, or sizes that differ; two files are named.
    """
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault((image.height, image.width), path)
        except Exception as error:  # decoders raise anything
            raise UserError(broken_file(path, error, "mend it or take it away")) from error
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise UserError(f"images of different sizes in one folder: {first} has {one[0]} × {one[1]} pixels, {second} {other[0]} × "
                            f"{other[1]}; crop or resize them to one size first")
    return next(iter(sizes))


def read_folder(folder: Path, shape: tuple[int, int, int]) -> tuple[list[Path], Tensor]:
    """Paths and images, uint8 ``(N, C, H, W)``, of a folder, resized to ``shape``; they must be of one size before.

    Raises:
        UserError: see :func:`image_paths`, :func:`common_size` and :class:`datasets.images.ImageFiles`.
    """
    paths = image_paths(folder)
    common_size(paths)
    files = ImageFiles(paths, shape)
    return paths, torch.from_numpy(np.stack([files[k] for k in range(len(files))]))

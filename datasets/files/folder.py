"""All images of one folder as an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import UserError
from datasets.files.images import ImageFiles, shown_size

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_COMMON = "png, jpg, jpeg, bmp, gif, tif or webp"


def pictures(folder: Path) -> list[Path]:
    """Image files directly in a folder, by their endings, in the order of their names; not those that are :func:`hidden`."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not hidden(path.name))


def hidden(name: str) -> bool:
    """Whether a file or folder is one that systems and programs leave behind: ``.git``, ``._a.png``, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def image_paths(folder: Path, nested: bool = False) -> list[Path]:
    """:func:`pictures` of a folder that must have some; ``nested`` looks into its sub-folders too.

    Raises:
        UserError: for a folder that is missing or without any.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of images" if folder.exists() else f"folder {folder} does not exist")
    inner = [place for place in sorted(folder.rglob("*/")) if not any(map(hidden, place.relative_to(folder).parts))] if nested else []
    if not (found := [path for place in (folder, *inner) for path in pictures(place)]):
        beneath = not nested and any(path.is_dir() for path in folder.iterdir())
        raise UserError(f"folder {folder} is empty: it has no file that ends in {_COMMON}"
                        + "; its sub-folders are not searched, name one of them" * beneath)
    return found


def common_size(paths: list[Path]) -> tuple[int, int]:
    """``(height, width)`` that all image files have, upright.

    Raises:
        UserError: for broken files, or sizes that differ; two files are named.
    """
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        sizes.setdefault(shown_size(path, "mend it or take it away"), path)
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise UserError(f"images of different sizes in one folder: {first} has {one[0]} × {one[1]} pixels, {second} {other[0]} × "
                            f"{other[1]}; crop or resize them to one size first")
    return next(iter(sizes))


def read_folder(folder: Path, shape: tuple[int, int, int]) -> tuple[list[Path], Tensor]:
    """Paths and images of a folder, see :func:`image_paths` and :func:`read_images`."""
    paths = image_paths(folder)
    return paths, read_images(paths, shape)


def read_images(paths: list[Path], shape: tuple[int, int, int], margin: int = 0) -> Tensor:
    """Images, uint8 ``(N, C, H, W)``, from files; they must be of one size.

    Args:
        shape: ``(channels, height, width)`` to which they are brought.
        margin: pixels on each side of ``shape`` that are black padding; images of another size are resized to what lies within.

    Raises:
        UserError: see :func:`common_size` and :class:`datasets.files.images.ImageFiles`.
    """
    channels, height, width = shape
    margin = 0 if common_size(paths) == (height, width) else margin
    files = ImageFiles(paths, (channels, height - 2 * margin, width - 2 * margin))
    return F.pad(torch.from_numpy(np.stack([files[k] for k in range(len(files))])), (margin,) * 4)

"""Images that were made before, such as in-painted ones: ``<folder>/<split>/<row>.png``, row counted from 0 in the split."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from datasets.files.images import ImageFiles
from datasets.schema import SchemaError

_ENDINGS = (".png", ".jpg", ".jpeg")
_NAMED = 5  # rows that a message names


def ready_images(folder: Path, split: str, rows: int, shape: tuple[int, int, int]) -> ImageFiles:
    """One image for each row of a split, read when it is asked for: uint8 ``(C, H, W)``, resized to ``shape``.

    Files are called by their row's number in the split, with leading zeros or without, and end in .png, .jpg or .jpeg.

    Raises:
        SchemaError: for a folder that is not there, a row without an image, or with two.
    """
    where, paths = Path(folder) / split, {}
    expected = f"expected {where}/<row>.png for the rows 0..{rows - 1} of the {split} split"
    if not where.is_dir():
        raise SchemaError(f"there is no folder {where} of ready images; {expected}")
    for path in sorted(where.iterdir()):
        if path.suffix.lower() in _ENDINGS and path.stem.isdecimal():
            if (row := int(path.stem)) in paths:
                raise SchemaError(f"both {paths[row]} and {path.name} are of row {row}; keep one")
            paths[row] = path
    if missing := [row for row in range(rows) if row not in paths]:
        first = ", ".join(map(str, missing[:_NAMED])) + ", …" * (len(missing) > _NAMED)
        raise SchemaError(f"{where} has no image of {len(missing)} of {rows} rows: {first}; {expected}")
    return ImageFiles([paths[row] for row in range(rows)], shape)


def as_images(ready: Tensor, like: Tensor) -> Tensor:
    """Ready images, uint8 or float in [0, 1], with the dtype and device of given ones, in memory of their own."""
    scaled = ready.to(like) if ready.is_floating_point() else ready.to(like) / 255
    return scaled.clamp(0, 1)

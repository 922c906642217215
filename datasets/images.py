"""Images that stay on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from datasets.base import LazyImages
from datasets.errors import UserError


class ImageFiles:
    """A list of image files as :class:`datasets.LazyImages`: ``files[i]`` is uint8 ``(C, H, W)``, resized to ``shape``.

    Args:
        paths: in the order of the attributes' rows.
        shape: ``(channels, height, width)``; 1 channel converts to grey, 3 to RGB.
        crop: share of each side that is kept, at the centre: .875 resizes to 256×256 what is then cut to 224×224.

    Raises:
        UserError: here if a file is missing, when it is read if it is broken; the file is named.
    """

    def __init__(self, paths: Sequence[str | Path], shape: tuple[int, int, int], crop: float = 1.0) -> None:
        self.paths, self.shape, self.crop = [Path(p) for p in paths], shape, crop
        if shape[0] not in (1, 3):
            raise UserError(f"image files have 1 or 3 channels, not {shape[0]}")
        missing = [str(p) for p in self.paths if not p.is_file()]
        if missing:
            raise UserError(f"{len(missing)} of {len(self.paths)} image files are missing, first {missing[0]}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        channels, height, width = self.shape
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # Pillow would cut what is above 255 of 65535, not scale it
                    raise UserError(f"image file {path} has pixels of 16 bits or more (mode {image.mode}); scale them to 8 bits first")
                image = image.convert("L" if channels == 1 else "RGB")
                whole = round(width / self.crop), round(height / self.crop)
                if image.size != whole:
                    image = image.resize(whole, Image.Resampling.BILINEAR)
                if whole != (width, height):
                    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
                    image = image.crop((left, top, left + width, top + height))
                pixels = np.array(image, dtype=np.uint8)
        except UserError:
            raise
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError, …
            raise UserError(f"image file {path} is broken: {error}; mend it or leave its row out") from error
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class Kept(LazyImages):
    """Some of the images, or masks, that are read one by one: those of rows ``index (M,)``."""

    def __init__(self, images: LazyImages, index: Tensor) -> None:
        self.images, self.index = images, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> np.ndarray | Tensor:
        return self.images[int(self.index[row])]


def kept(values: Tensor | LazyImages, index: Tensor) -> Tensor | LazyImages:
    """Rows ``index (M,)`` of a column, which stays lazy if it is."""
    return values[index] if isinstance(values, Tensor) else Kept(values, index)

"""Images that stay on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.errors import UserError


class ImageFiles:
    """A list of image files as :class:`datasets.LazyImages`: ``files[i]`` is uint8 ``(C, H, W)``, resized to ``shape``.

    Args:
        paths: in the order of the attributes' rows.
        shape: ``(channels, height, width)``; 1 channel converts to grey, 3 to RGB.

    Raises:
        UserError: here if a file is missing, when it is read if it is broken; the file is named.
    """

    def __init__(self, paths: Sequence[str | Path], shape: tuple[int, int, int]) -> None:
        self.paths, self.shape = [Path(p) for p in paths], shape
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
                if image.size != (width, height):
                    image = image.resize((width, height), Image.Resampling.BILINEAR)
                pixels = np.array(image, dtype=np.uint8)
        except UserError:
            raise
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError, …
            raise UserError(f"image file {path} is broken: {error}; mend it or leave its row out") from error
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

"""Masks in files: where an image's foreground is, from a picture or an array; and what cannot be told from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.errors import UserError
from datasets.files.idx import DataError
from datasets.files.images import alpha_of, broken_file, upright

COUNT = "mend it, or count such masks as missing: --option skip-broken=true"
_HALF = 128  # of 255
_GREY = 32  # channels that differ by less, as compression leaves them, are grey


def read_picture_mask(path: Path) -> np.ndarray:
    """Bool ``(h, w)`` of an image file, upright: at least half of white; where something is drawn in one colour on black or in the
    transparency alone, that; of pixels 0 and 1, those of 1.

    Raises:
        DataError: for a broken file, 16 bits, or one that does not say what the foreground is.
    """
    try:
        image = upright(path, COUNT, "mask file")
    except UserError as error:
        raise DataError(str(error)) from error
    if (alpha := alpha_of(image)) is None or alpha.getextrema()[0] == alpha.getextrema()[1]:
        return _bright(image.convert("RGB"), path)
    opaque, colours = np.array(alpha) >= _HALF, image.convert("RGBA").convert("RGB")  # what is under the transparency
    seen = np.array(colours)[opaque]
    if (seen == seen[:1]).all():
        return opaque
    if np.array_equal(_bright(colours, path), opaque):
        return opaque
    raise DataError(f"mask file {path} has one shape in its colours and another in its transparency; save the mask alone, white on black, "
                    f"without transparency; {COUNT}")


def _bright(image: Image.Image, path: Path) -> np.ndarray:
    """Of a picture in RGB."""
    grey, channels = np.array(image.convert("L")), np.array(image)
    highest = channels.max(2)
    if (highest - channels.min(2)).max() >= _GREY:
        found = image.getcolors(2)  # None of more
        if found and len(found) == 2 and (0, 0, 0) in [colour for _, colour in found]:
            return highest > 0
        raise DataError(f"mask file {path} has colours; a mask is white on black, or one colour on black; {COUNT}")
    if (top := int(grey.max())) == 1:
        return grey == 1
    if 1 < top < _HALF:
        raise DataError(f"mask file {path}: its brightest pixel is {top} of 255, so that none is at least half of white; draw the "
                        f"foreground with 255, or with 1 on 0; {COUNT}")
    if top == 255 and (grey == 1).any() and not ((grey > 1) & (grey < 255)).any():
        raise DataError(f"mask file {path} has the pixels 0, 1 and 255, of which either may be the foreground; draw it alone, with 255; "
                        f"{COUNT}")
    return grey >= _HALF


def read_array_mask(path: Path) -> np.ndarray:
    """Bool ``(h, w)`` of an ``.npy`` file of booleans, 0 and 1, or shares of at least a half.

    Raises:
        DataError: for a broken file, an array of another shape, or values that are no shares.
    """
    try:
        mask = np.load(path, mmap_mode="r", allow_pickle=False)  # memory-mapped, since a header may promise any size
    except Exception as error:  # OSError, ValueError, EOFError, and what a damaged header is evaluated to
        raise DataError(broken_file(path, error, COUNT, "mask file")) from error
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "biuf":
        what = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else "several arrays"
        raise DataError(f"mask file {path} holds {what}; a mask is one array of booleans, 0 and 1, or shares")
    if mask.ndim != 2:
        raise DataError(f"mask file {path} holds an array of shape {mask.shape}; a mask is (height, width)")
    mask = np.array(mask)
    if mask.size and mask.dtype.kind != "b" and not (np.isfinite(mask).all() and 0 <= mask.min() <= mask.max() <= 1):
        raise DataError(f"mask file {path} holds {mask.min():g}..{mask.max():g}; a mask is of booleans, or of shares from 0 to 1: divide "
                        f"by its greatest value; {COUNT}")
    return mask >= 0.5

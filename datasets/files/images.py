"""Images that stay on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datasets.base import LazyImages
from datasets.errors import UserError
from datasets.files.lazyrows import SoundRows

REMEDY = "mend it or leave its row out"
_ORIENTATION = 0x0112  # the EXIF tag: how a camera was held
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
_LYING = (5, 6, 7, 8)  # whose height and width change places
_TELLS = (b"eXIf", b"Raw profile type", b"adobe.xmp")  # where a PNG file may say its orientation
_FAINT, _CLEAR = 16, 128  # of 255: contrast that nobody sees; a difference of opacity that was meant to be seen


class ImageFiles(SoundRows):
    """A list of image files as :class:`datasets.LazyImages`: ``files[i]`` is uint8 ``(C, H, W)``, resized to ``shape``.

    Images are read as viewers show them, see :func:`open_image`.

    Args:
        paths: in the order of the attributes' rows.
        shape: ``(channels, height, width)``; 1 channel converts to grey, 3 to RGB.
        crop: share of each side that is kept, at the centre: .875 resizes to 256×256 what is then cut to 224×224.
        remedy: what to do about a broken file, for the message.

    Raises:
        UserError: here if a file is missing, when it is read if it is broken; the file is named.
    """

    def __init__(self, paths: Sequence[str | Path], shape: tuple[int, int, int], crop: float = 1.0, remedy: str = REMEDY) -> None:
        self.paths, self.shape, self.crop, self.remedy = [Path(p) for p in paths], shape, crop, remedy
        if shape[0] not in (1, 3):
            raise UserError(f"image files have 1 or 3 channels, not {shape[0]}")
        missing = [str(p) for p in self.paths if not p.is_file()]
        if missing:
            raise UserError(f"{len(missing)} of {len(self.paths)} image files are missing, first {missing[0]}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        channels, height, width = self.shape
        pixels = np.array(fitted(open_image(self.paths[index], channels, self.remedy), (height, width), self.crop), dtype=np.uint8)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    def stamp(self) -> bytes:
        """Other for other files, or where any was written since: paths, sizes and times; none is read."""
        found = [(str(path.resolve()), (known := path.stat()).st_size, known.st_mtime_ns) for path in self.paths]
        return repr((self.shape, self.crop, found)).encode()


def open_image(path: Path, channels: int = 3, remedy: str = REMEDY) -> Image.Image:
    """An image as viewers show it, in mode L (one channel) or RGB: upright, see :func:`upright`, and on white where it is transparent.

    Raises:
        UserError: for a file that is broken, has 16 bits, or shows nothing on white: white, or nothing, on transparent ground.
    """
    image, mode = upright(path, remedy), "L" if channels == 1 else "RGB"
    if (alpha := alpha_of(image)) is None:
        return image.convert(mode)
    shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    (low, high), contrast = alpha.getextrema(), max(top - bottom for bottom, top in shown.getextrema())
    if contrast < _FAINT and (high - low >= _CLEAR or high < _FAINT):
        raise UserError(f"image file {path} shows nothing: it is transparent, and on white, as viewers show it, nothing is left of it; "
                        "save it on a ground of another colour, without transparency, or leave it out")
    return shown.convert(mode)


def upright(path: Path, remedy: str = REMEDY, what: str = "image file") -> Image.Image:
    """An image in its own mode, turned and mirrored as its EXIF orientation says, which viewers follow.

    Raises:
        UserError: for a file that is broken or has 16 bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut what is above 255 of 65535, not scale it
                raise UserError(f"{what} {path} has pixels of 16 bits or more (mode {image.mode}); scale them to 8 bits first")
            image.load()
            turn = _TURNS.get(_orientation(image))
            return image if turn is None else image.transpose(turn)
    except UserError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError, …
        raise UserError(broken_file(path, error, remedy, what)) from error


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The opacity of an image's pixels, in mode L; None where all are opaque."""
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def shown_size(path: Path, remedy: str = REMEDY) -> tuple[int, int]:
    """``(height, width)`` of the image that :func:`open_image` gives, without decoding it.

    Raises:
        UserError: for a broken file.
    """
    try:
        with Image.open(path) as image:
            # Pillow decodes a PNG file to look for what may stand behind its pixels, and has turned the size of a TIFF file already
            told = image.format != "TIFF" and (image.format != "PNG" or any(word in path.read_bytes() for word in _TELLS))
            return image.size if told and _orientation(image) in _LYING else image.size[::-1]
    except Exception as error:  # see upright
        raise UserError(broken_file(path, error, remedy)) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # what cameras and programs write there can be anything; viewers then show pixels as they are
        return 1


def broken_file(path: Path, error: Exception, remedy: str = REMEDY, what: str = "image file") -> str:
    """What to say of a file that cannot be decoded; its path once, which some of the decoder's errors name too."""
    if isinstance(error, UnidentifiedImageError):
        told = "it is in no format of images that is known"
    else:
        told = getattr(error, "strerror", None) or str(error)
    return f"{what} {path} is broken: {told}; {remedy}"


def resized(size: tuple[int, int], crop: float) -> tuple[int, int]:
    """Height and width to which an image is resized before ``size`` is cut from it."""
    return round(size[0] / crop), round(size[1] / crop)


def fitted(image: Image.Image, size: tuple[int, int], crop: float = 1.0) -> Image.Image:
    """An image, or a mask in mode F, resized so that ``crop`` of each side, at the centre, is ``size`` (height, width), and cut to it."""
    height, width = size
    whole = resized(size, crop)[::-1]
    if image.size != whole:
        image = image.resize(whole, Image.Resampling.BILINEAR)
    if whole != (width, height):
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image


class Kept(SoundRows, LazyImages):
    """Some of the images, or masks, that are read one by one: those of rows ``index (M,)``."""

    def __init__(self, images: LazyImages, index: Tensor) -> None:
        self.images, self.index = images, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> np.ndarray | Tensor:
        return self.images[int(self.index[row])]

    def stamp(self) -> bytes:
        """See :func:`stamp_of`, of all files, with which of them are kept."""
        return stamp_of(self.images) + self.index.numpy().tobytes()


def stamp_of(images: LazyImages) -> bytes:
    """By what images that are read one by one are told from others without reading them; nothing where they are of no files."""
    return images.stamp() if isinstance(images, (ImageFiles, Kept)) else b""


def kept(values: Tensor | LazyImages, index: Tensor) -> Tensor | LazyImages:
    """Rows ``index (M,)`` of a column, which stays lazy if it is."""
    return values[index] if isinstance(values, Tensor) else Kept(values, index)

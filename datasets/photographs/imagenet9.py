"""ImageNet-9: nine classes of objects, their backgrounds as photographed, exchanged, or without the object (Xiao et al. 2021).

*Noise or signal: the role of image backgrounds in object recognition*. The background gap is the accuracy on ``mixed_same`` (the
background of another image of the class) less that on ``mixed_rand`` (of an image of any class).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from datasets.files.folder import pictures
from datasets.files.idx import DataError
from datasets.files.images import broken_file
from datasets.files.table import COUNT, SKIP, Folders, Row, class_folders
from datasets.registry import register
from datasets.schema import Variable
from datasets.words import listed

CLASSES = ("dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate", "fish")
FOLDERS = tuple(f"{k:02d}_{name}" for k, name in enumerate(CLASSES))
VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg")
_DARK, _SQUARE = 16, np.ones((3, 3), dtype=bool)  # what is at most so bright counts as black
_PLACES = {"train": ("train", "train"), "valid": ("train", "val"), "test": ("test", "val")}  # split → part, leaf


@register
@dataclass(eq=False)
class ImageNet9(Folders):
    """category, variant → image; what an image's background is instead of its own is its ``variant``.

    ``{train,test}/<variant>/{train,val}/<class>/*.JPEG`` in ``data_dir`` or ``data_dir/bg_challenge``: training images are in
    ``train/<variant>/train``, validation in ``train/<variant>/val``, the test in ``test/<variant>/val``; classes are folders
    ``00_dog`` … ``08_fish``. Masks are ``fg_mask`` in a variant's place, ``.npy`` for an image of the same name; for an original image
    without one, what is black in its ``no_fg`` image and not in itself (see :func:`removed`). An image from which nothing was taken
    has an empty mask: it is not known what in it is the foreground; ``skip_broken`` counts it as one that is missing.

    Nothing here says what an image's background shows, so no attribute is spurious, and groups are the classes. The variant is an
    attribute: a test of several (``variant=mixed_same,mixed_rand``) can be told apart by ``--spurious variant``, and a training on
    several has one environment for each.

    Args:
        variant: of the test images; several are separated by commas.
        train_variant: of training and validation images, likewise.

    The other options are those of :class:`datasets.files.table.Folders`.
    """

    name: ClassVar[str] = "imagenet9"
    source: ClassVar[str] = "train/<variant>/{train,val}/<class> and test/<variant>/val/<class> (bg_challenge)"
    label: ClassVar[str] = "category"
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("category", "categorical", classes=CLASSES), Variable("variant", "categorical", classes=VARIANTS),
        Variable("image", "image", ("category", "variant"), shape=(3, 224, 224)))

    variant: str = "original"
    train_variant: str = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("variant", "train_variant"):
            if not listed(text := getattr(self, option), f"{self.title}: {option}", VARIANTS, DataError):
                raise DataError(f"{self.title}: {option}={text!r} names no variant; valid are {', '.join(VARIANTS)}")

    def variants(self, split: str) -> list[str]:
        """Of the images of a split."""
        return listed(self.variant if split == "test" else self.train_variant, "variant")

    def listed(self, split: str) -> list[Row]:
        return [row for variant in self.variants(split) for row in self._of(split, variant)]

    def _of(self, split: str, variant: str) -> list[Row]:
        part, leaf = _PLACES[split]
        folder = self.find(f"{part}/{variant}/{leaf}", f"bg_challenge/{part}/{variant}/{leaf}")
        rows = []
        for name, place in class_folders(folder, FOLDERS, self.title).items():
            values = {"category": FOLDERS.index(name), "variant": VARIANTS.index(variant)}
            for image in pictures(place):
                masks = folder.parent.parent / "fg_mask" / leaf / name / f"{image.stem}.npy"
                without = folder.parent.parent / "no_fg" / leaf / name / image.name
                found = next((path for path in (masks, without) if path.is_file() and (path == masks or variant == "original")), None)
                rows.append(Row(image, values, found, f"no {masks}" + (f" nor {without}" if variant == "original" else "")))
        return rows

    def mask(self, row: Row) -> np.ndarray:
        return read_array_mask(row.mask) if row.mask.suffix == ".npy" else removed(row.image, row.mask)

    def may_be_empty(self, row: Row) -> bool:
        return row.mask.suffix != ".npy"

    def environments(self, split: str) -> Tensor:
        """The place of a row's variant among those of its split."""
        names = [VARIANTS.index(name) for name in self.variants(split)]
        return torch.tensor([names.index(row.values["variant"]) for row in self.rows(split)])


def read_array_mask(path: Path) -> np.ndarray:
    """Bool ``(h, w)`` of an ``.npy`` file of booleans, 0 and 1, or shares.

    Raises:
        DataError: for a broken file, or an array of another shape.
    """
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(broken_file(path, error, COUNT, "mask file")) from error
    if mask.ndim != 2:
        raise DataError(f"mask file {path} holds an array of shape {mask.shape}; a mask is (height, width)")
    return mask >= 0.5


def removed(path: Path, without: Path) -> np.ndarray:
    """Where the foreground was taken out: nearly black in ``without`` and not in the image, bool ``(h, w)``.

    Compression makes black grey by some levels, up to a threshold here, and the foreground's own dark pixels cannot be told from
    black: holes are filled, and specks and gaps of single pixels taken away (an opening and a closing by 3×3 pixels).

    Raises:
        DataError: for a broken file, or images of different sizes.
    """
    pixels = []
    for file in (path, without):
        try:
            with Image.open(file) as image:
                pixels.append(np.array(image.convert("RGB")))
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError, …
            raise DataError(broken_file(file, error, SKIP)) from error
    if pixels[0].shape != pixels[1].shape:
        raise DataError(f"{without} is {pixels[1].shape[:2]} pixels, but {path}, from which it was made, is {pixels[0].shape[:2]}")
    seen, left = (values.transpose(2, 0, 1).max(0) > _DARK for values in pixels)
    gone = seen & ~left
    closed = ndimage.binary_closing(np.pad(gone, 2, mode="edge"), _SQUARE)[1:-1, 1:-1]  # beyond the border is what is at it
    parts, _ = ndimage.label(~closed)
    outside = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))  # 0, the foreground itself, may be among them
    filled = closed | ~np.isin(parts, outside)
    return ndimage.binary_opening(filled, _SQUARE)[1:-1, 1:-1]

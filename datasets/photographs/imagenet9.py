"""ImageNet-9: nine classes of objects, their backgrounds as photographed, exchanged, or without the object (Xiao et al. 2021).

*Noise or signal: the role of image backgrounds in object recognition*. The background gap is the accuracy on ``mixed_same`` (the
background of another image of the class) less that on ``mixed_rand`` (of an image of any class).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from datasets.files.folder import pictures
from datasets.files.idx import DataError
from datasets.files.images import open_image
from datasets.files.masks import read_array_mask
from datasets.files.table import SKIP, Folders, Row, class_folders
from datasets.registry import register
from datasets.schema import Variable
from datasets.words import listed

CLASSES = ("dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate", "fish")
FOLDERS = tuple(f"{k:02d}_{name}" for k, name in enumerate(CLASSES))
VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t", "in9l")
_DARK, _SQUARE = 16, np.ones((3, 3), dtype=bool)  # what is at most so bright counts as black
_PLACES = {"train": ("train", "train"), "valid": ("train", "val"), "test": ("test", "val")}  # split → part, leaf
_ARCHIVE = "bg_challenge"  # what the test's archive unpacks to; those for training unpack to their variant
_MIXED = re.compile(r"fg_(n\d+_\d+)_bg_")  # a mixed image's name begins with that of the image of its foreground


@register
@dataclass(eq=False)
class ImageNet9(Folders):
    """category, variant → image; what an image's background is instead of its own is its ``variant``.

    As the archives unpack into ``data_dir``: ``bg_challenge/<variant>/val/<class>/*.JPEG`` are test images, and of the archives for
    training ``<variant>/train/<class>`` are training and ``<variant>/val/<class>`` validation images. Or sorted by hand, in ``data_dir``
    or ``data_dir/bg_challenge``: ``train/<variant>/train``, ``train/<variant>/val`` and ``test/<variant>/val``. Classes are folders
    ``00_dog`` … ``08_fish``. Masks are ``fg_mask`` in a variant's place, ``.npy`` for an image of the same name, or that its foreground is
    from; for an original image without one, what is black in its ``no_fg`` image and not in itself (see :func:`removed`). An image from
    which nothing was taken has an empty mask: it is not known what in it is the foreground; ``skip_broken`` counts it as one that is
    missing. ``in9l`` is the larger training set of original images.

    Nothing here says what an image's background shows, so no attribute is spurious, and groups are the classes. The variant is an
    attribute: a test of several (``variant=mixed_same,mixed_rand``) can be told apart by ``--spurious variant``, and a training on
    several has one environment for each.

    Args:
        variant: of the test images; several are separated by commas.
        train_variant: of training and validation images, likewise.

    The other options are those of :class:`datasets.files.table.Folders`.
    """

    name: ClassVar[str] = "imagenet9"
    source: ClassVar[str] = "bg_challenge/<variant>/val/<class> for the test, and <variant>/{train,val}/<class> for training"
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
        folder, leaf = self._folder(split, variant), _PLACES[split][1]
        rows = []
        for name, place in class_folders(folder, FOLDERS, self.title).items():
            values = {"category": FOLDERS.index(name), "variant": VARIANTS.index(variant)}
            for image in pictures(place):
                stem = mixed.group(1) if (mixed := _MIXED.match(image.stem)) else image.stem
                masks = folder.parent.parent / "fg_mask" / leaf / name / f"{stem}.npy"
                without = folder.parent.parent / "no_fg" / leaf / name / image.name
                found = next((path for path in (masks, without) if path.is_file() and (path == masks or variant == "original")), None)
                rows.append(Row(image, values, found, f"no {masks}" + (f" nor {without}" if variant == "original" else "")))
        return rows

    def _folder(self, split: str, variant: str) -> Path:
        """Where a split's images are: sorted by hand, or as the archives unpack.

        Raises:
            DataError: if nowhere, or where the archives for test and training were unpacked into one another.
        """
        part, leaf = _PLACES[split]
        candidates = [f"{part}/{variant}/{leaf}", f"{_ARCHIVE}/{part}/{variant}/{leaf}", f"{variant}/{leaf}"]
        trained = (self.data_dir / variant / "train").is_dir()
        if split == "test":  # data_dir may be the test's archive itself
            candidates[2:] = [f"{_ARCHIVE}/{variant}/{leaf}", *([] if trained else [f"{variant}/{leaf}"])]
        elif not trained:  # a folder val alone is the test's
            candidates[2:] = [f"{variant}/train"]
        folder = self.find(*candidates)
        tests = folder.parent.parent
        if split != "train" and (folder.parent / "train").is_dir() and (tests.name == _ARCHIVE or (tests / "fg_mask").is_dir()):
            raise DataError(f"{self.title}: {folder.parent} has train beside val: an archive for training was unpacked into the test's, so "
                            "that their images are mixed; unpack both again, each into a folder of its own")
        return folder

    def mask(self, row: Row) -> np.ndarray:
        return read_array_mask(row.mask) if row.mask.suffix == ".npy" else removed(row.image, row.mask)

    def may_be_empty(self, row: Row) -> bool:
        return row.mask.suffix != ".npy"

    def environments(self, split: str) -> Tensor:
        """The place of a row's variant among those of its split."""
        names = [VARIANTS.index(name) for name in self.variants(split)]
        return torch.tensor([names.index(row.values["variant"]) for row in self.rows(split)])


def removed(path: Path, without: Path) -> np.ndarray:
    """Where the foreground was taken out: nearly black in ``without`` and not in the image, bool ``(h, w)``.

    Compression makes black grey by some levels, up to a threshold here, and the foreground's own dark pixels cannot be told from
    black: holes are filled, and specks and gaps of single pixels taken away (an opening and a closing by 3×3 pixels).

    Raises:
        UserError: for a broken file, or images of different sizes.
    """
    pixels = [np.array(open_image(file, remedy=SKIP)) for file in (path, without)]
    if pixels[0].shape != pixels[1].shape:
        raise DataError(f"{without} is {pixels[1].shape[:2]} pixels, but {path}, from which it was made, is {pixels[0].shape[:2]}")
    seen, left = (values.transpose(2, 0, 1).max(0) > _DARK for values in pixels)
    gone = seen & ~left
    closed = ndimage.binary_closing(np.pad(gone, 2, mode="edge"), _SQUARE)[1:-1, 1:-1]  # beyond the border is what is at it
    parts, _ = ndimage.label(~closed)
    outside = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))  # 0, the foreground itself, may be among them
    filled = closed | ~np.isin(parts, outside)
    return ndimage.binary_opening(filled, _SQUARE)[1:-1, 1:-1]

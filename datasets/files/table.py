"""Data sets that are folders of photographs with a table, a listing or class folders beside them: what these share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from datasets.base import CausalDataset, LazyImages
from datasets.errors import UserError
from datasets.files.idx import DataError
from datasets.files.images import ImageFiles, fitted, resized, shown_size
from datasets.files.lazyrows import SoundRows
from datasets.ranges import within

SKIP = "mend it, or leave such files out: --option skip-broken=true"
_SHOWN = 8
Size = within(16, 8192)  # pixels of a side


@dataclass(frozen=True)
class Row:
    """One image with what is known of it.

    Attributes:
        values: attribute → class index.
        mask: what :meth:`Folders.mask` reads its mask from; None without one.
        missing: where a mask was expected, if there is none.
        listed: where the image is named, if in a table with numbered lines.
    """

    image: Path
    values: Mapping[str, int]
    mask: Any = field(default=None, compare=False)
    missing: str = ""
    listed: str = field(default="", compare=False)


@dataclass(eq=False)
class Folders(CausalDataset):
    """Photographs under ``data_dir``, read one by one and resized to a square; grey ones become RGB.

    A subclass gives :meth:`listed` and, where it has masks, :meth:`mask`; the last of its variables is the image. Another world's
    photographs are not known, so there are no true counterfactuals.

    Args:
        data_dir: the folder of the published files.
        size: side of the images in pixels, at least 16.
        in_memory: read all images of a split at once and keep them, 3·size² bytes each.
        skip_broken: read every image and mask once, before anything else, and leave out images that cannot be decoded; masks that
            are broken, empty or of another size than their image count as missing. Both are counted.
        masked_only: leave out images without a mask.

    Raises:
        DataError: for files that are missing or contradict each other.
    """

    source: ClassVar[str] = ""
    """What ``data_dir`` holds, in words."""
    crop: ClassVar[float] = 1.0
    """Share of each side that is kept; see :class:`datasets.files.images.ImageFiles`."""
    sized: ClassVar[bool] = False
    """Whether :meth:`mask` gives masks of the size here, not of the image's own."""

    data_dir: Path | None = None
    size: Size[int] = 224
    in_memory: bool = False
    skip_broken: bool = False
    masked_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is None:
            raise DataError(f"{self.title} needs --data-dir, the folder of {self.source}")
        self.data_dir = Path(self.data_dir).expanduser()
        if not self.data_dir.is_dir():
            raise DataError(f"{self.title}: {self.data_dir} is no folder; it should hold {self.source}")
        *attributes, image = self.variables
        self.variables = (*attributes, replace(image, shape=(3, self.size, self.size)))

    # ------------------------------------------------------------------------------------------------ to provide
    def listed(self, split: str) -> list[Row]:
        """All rows of a split, in a fixed order; files need not exist yet."""
        raise NotImplementedError(f"{type(self).__name__} must define listed(split)")

    def mask(self, row: Row) -> np.ndarray:
        """The foreground of an image, bool, of the image's own size ``(h, w)``, or of its size here where ``sized``."""
        raise NotImplementedError(f"{type(self).__name__} must define mask(row)")

    def may_be_empty(self, row: Row) -> bool:
        """Whether an empty mask of this row says that its foreground is not known, not that there is a mistake in its file."""
        return False

    # ------------------------------------------------------------------------------------------------ derived
    def load(self, split: str) -> dict[str, Any]:
        rows = self.rows(split)
        images: Any = self._files(rows)
        if self.in_memory:
            images = torch.stack([torch.from_numpy(images[k].copy()) for k in range(len(rows))])
        return {**{v.name: torch.tensor([row.values[v.name] for row in rows]) for v in self.schema.attributes}, "image": images}

    def masks(self, split: str) -> LazyImages | None:
        """Read one by one, see :meth:`mask`; None, with a warning if only some are missing, unless every image has one."""
        rows = self.rows(split)
        without = [row for row in rows if row.mask is None]
        if without and len(without) < len(rows):
            warnings.warn(self.masks_missing(split), stacklevel=2)
        return None if without else self._masks(rows)

    def masks_missing(self, split: str) -> str:
        rows = self.rows(split)
        without = [row for row in rows if row.mask is None]
        if not without or len(without) == len(rows):
            return without[0].missing if without else ""
        return (f"{len(without)} of {len(rows)} {split} images of {self.title} have no mask, first {without[0].image} "
                f"({without[0].missing}), so the split counts as having none; --option masked-only=true leaves these images out")

    def rows(self, split: str) -> list[Row]:
        """The rows of a split: those that are listed, less what the options leave out."""
        if split not in self._rows:
            self._rows[split] = self._kept(split)
        return self._rows[split]

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        return {}

    def _kept(self, split: str) -> list[Row]:
        rows = self.listed(split)
        if missing := [row for row in rows if not row.image.is_file()]:
            place = f" ({missing[0].listed})" if missing[0].listed else ""
            raise DataError(f"{self.title}: {len(missing)} of {len(rows)} images that are listed for the {split} split are missing, first "
                            f"{missing[0].image}{place}; unpack all of {self.source}")
        if self.skip_broken:
            rows = self._sound(rows, split)
        if self.masked_only:
            rows = [row for row in rows if row.mask is not None]
        if not rows:
            raise DataError(f"{self.title}: the {split} split has no images{' with masks' if self.masked_only else ''} in {self.data_dir}")
        return rows

    def _sound(self, rows: list[Row], split: str) -> list[Row]:
        """Those whose images can be read, without masks that cannot be used."""
        files = self._files(rows)
        if broken := {k for k in range(len(rows)) if _wrong(files, k)}:
            warnings.warn(f"{len(broken)} of {len(rows)} {split} images of {self.title} are broken and left out, first "
                          f"{rows[min(broken)].image}", stacklevel=2)
        rows = [row for k, row in enumerate(rows) if k not in broken]
        given = [k for k, row in enumerate(rows) if row.mask is not None]
        masks = FolderMasks(rows, self.mask, self.size, self.crop, self.sized)
        if unfit := {k: why for k in given if (why := _wrong(masks, k))}:
            warnings.warn(f"{len(unfit)} of {len(given)} {split} masks of {self.title} cannot be used and count as missing, first: "
                          f"{next(iter(unfit.values()))}", stacklevel=2)
        return [replace(row, mask=None, missing=unfit[k]) if k in unfit else row for k, row in enumerate(rows)]

    def _files(self, rows: Sequence[Row]) -> ImageFiles:
        return ImageFiles([row.image for row in rows], self.schema.image.shape, self.crop, SKIP)

    def _masks(self, rows: Sequence[Row]) -> FolderMasks:
        return FolderMasks(rows, self.mask, self.size, self.crop, self.sized, self.may_be_empty)

    def find(self, *candidates: str) -> Path:
        """The first of these paths that is there, below ``data_dir``.

        Raises:
            DataError: if none is; it tells what was expected where, and what is there instead.
        """
        for name in candidates:
            if (path := self.data_dir / name).exists():
                return path
        there = sorted(p.name for p in self.data_dir.iterdir())
        told = ", ".join(there[:_SHOWN]) + (", …" if len(there) > _SHOWN else "") if there else "nothing"
        raise DataError(f"{self.title}: no {' or '.join(candidates)} in {self.data_dir}, which holds {told}; it should hold {self.source}")


class FolderMasks(SoundRows):
    """Masks that are read one by one: ``masks[i]`` is bool ``(H, W)``, resized and cut as its image is.

    Every pixel that shows some of the foreground belongs to it, however little: a mask is resized by the weights by which its image
    is, and what gets any is foreground. Where it is resized one more pixel all around is, since JPEG files smear colours beyond the
    foreground's edge. So next to nothing of it is left in the background, of which a strip may be repeated all over the image.

    Args:
        crop: see :class:`datasets.files.images.ImageFiles`.
        sized: see :class:`Folders`.
        may_be_empty: of which rows a mask without foreground is no error.

    Raises:
        DataError: when read, for a mask of another size than its image, or without any foreground.
    """

    def __init__(self, rows: Sequence[Row], read: Callable[[Row], np.ndarray], size: int, crop: float = 1.0, sized: bool = False,
                 may_be_empty: Callable[[Row], bool] = lambda row: False) -> None:
        self.rows, self.read, self.size, self.crop, self.sized, self.may_be_empty = rows, read, size, crop, sized, may_be_empty

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        row, size = self.rows[index], (self.size, self.size)
        mask, theirs = self.read(row), size
        if not self.sized:
            theirs = shown_size(row.image, SKIP)
        if mask.shape != theirs:
            raise DataError(f"the mask of {row.image} is {'×'.join(map(str, mask.shape))} pixels, its image "
                            f"{'×'.join(map(str, theirs))} (height × width); masks are of their image's size")
        if not self.sized:
            mask = np.array(fitted(Image.fromarray(mask.astype(np.float32)), size, self.crop)) > 0
            if theirs != resized(size, self.crop):
                mask = ndimage.binary_dilation(mask, np.ones((3, 3)))
        if not mask.any() and not self.may_be_empty(row):
            where = " at the centre" if self.crop < 1 else ""
            raise DataError(f"the mask of {row.image} is empty: it has no foreground{where}; mend it, leave its row out, or count such "
                            "masks as missing: --option skip-broken=true")
        return torch.from_numpy(mask)


def _wrong(files: ImageFiles | FolderMasks, index: int) -> str:
    """What cannot be read, in words."""
    try:
        files[index]
    except UserError as error:
        return str(error)
    return ""


def class_folders(folder: Path, known: Iterable[str], title: str) -> dict[str, Path]:
    """Folders of classes directly in ``folder``, by name.

    Raises:
        DataError: for one of another name, or a missing one.
    """
    known = list(known)
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if unknown := [name for name in found if name not in known]:
        raise DataError(f"{title}: unknown class folder {folder / unknown[0]}; valid are {', '.join(known)}")
    if missing := [name for name in known if name not in found]:
        raise DataError(f"{title}: no class folder {', '.join(missing)} in {folder}")
    return found


def share_of(values: Sequence[int], share: float, seed: int) -> np.ndarray:
    """Which of the rows to hold out, bool ``(N,)``: of each value its share, rounded, drawn at random."""
    values, chosen, random = np.asarray(values), np.zeros(len(values), dtype=bool), np.random.default_rng(seed)
    for value in np.unique(values):
        members = random.permutation(np.flatnonzero(values == value))
        chosen[members[:round(share * len(members))]] = True
    return chosen

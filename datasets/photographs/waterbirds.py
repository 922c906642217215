"""Waterbirds: birds of two kinds cut out and set before land or water, which goes with the kind (Sagawa et al. 2020).

*Distributionally robust neural networks for group shifts*, section 4. In training 95 % of waterbirds are on water and 95 % of
landbirds on land; in validation and test either kind is on either ground equally often.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os.path import normpath
from pathlib import Path
from typing import ClassVar

import numpy as np

from datasets.base import SPLITS
from datasets.files.idx import DataError
from datasets.files.masks import read_picture_mask
from datasets.files.table import Folders, Row
from datasets.files.text import read_csv
from datasets.registry import register
from datasets.schema import Variable

PUBLISHED = {(0, 0): 3498, (0, 1): 184, (1, 0): 56, (1, 1): 1057}  # (y, place) → training images
COLUMNS = ("img_filename", "y", "split", "place")  # that are read; img_id and place_filename are not
_FOLDER = "waterbird_complete95_forest2water2"


@register
@dataclass(eq=False)
class Waterbirds(Folders):
    """y → place; y, place → image.

    ``metadata.csv`` (``img_id, img_filename, y, split, place, place_filename``; split 0 train, 1 valid, 2 test) with the images that
    it names beside it, in ``data_dir`` or in ``data_dir/waterbird_complete95_forest2water2``. Masks are CUB's
    ``segmentations/<class>/<name>.png`` for the image ``<class>/<name>.jpg``, beside the table or in ``data_dir``; a pixel is foreground
    if at least half of those who drew it thought so. A training split of other than the published group sizes is warned of.

    The options are those of :class:`datasets.files.table.Folders`.
    """

    name: ClassVar[str] = "waterbirds"
    source: ClassVar[str] = f"metadata.csv, the folders of images that it names, and segmentations/ ({_FOLDER}.tar.gz)"
    label: ClassVar[str] = "y"
    spurious: ClassVar[tuple[str, ...]] = ("place",)
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("y", "binary", classes=("landbird", "waterbird")), Variable("place", "binary", ("y",), classes=("land", "water")),
        Variable("image", "image", ("y", "place"), shape=(3, 224, 224)))

    @cached_property
    def _table(self) -> tuple[Path, list[dict[str, str]]]:
        """The csv and its lines."""
        path, seen = self.find("metadata.csv", f"{_FOLDER}/metadata.csv"), {}
        numbered = read_csv(path, COLUMNS)
        for number, line in numbered:
            if not line["img_filename"].strip():
                raise DataError(f"{path}, line {number}: img_filename is empty; name an image, or leave the line out")
            if (first := seen.setdefault(normpath(line["img_filename"]), number)) != number:
                raise DataError(f"{path}, line {number}: img_filename={line['img_filename']!r} is that of line {first} again; leave one of "
                                "them out")
            for name, valid in (("y", "01"), ("place", "01"), ("split", "012")):
                if line[name] not in tuple(valid):
                    raise DataError(f"{path}, line {number}: {name}={line[name]!r} must be one of {', '.join(valid)}")
            line["listed"] = f"{path.name}, line {number}"
        return path, [line for _, line in numbered]

    def listed(self, split: str) -> list[Row]:
        path, lines = self._table
        drawn = next((folder for folder in (path.parent / "segmentations", self.data_dir / "segmentations",
                                            path.parent.parent / "segmentations") if folder.is_dir()), None)
        rows = [self._row(path.parent, drawn, line) for line in lines if line["split"] == str(SPLITS.index(split))]
        if split == "train":
            self._compare(Counter((row.values["y"], row.values["place"]) for row in rows))
        return rows

    def _row(self, folder: Path, drawn: Path | None, line: Mapping[str, str]) -> Row:
        values = {"y": int(line["y"]), "place": int(line["place"])}
        if drawn is None:
            missing = (f"no folder segmentations/ in {folder}; expected {folder}/segmentations/<class>/<image>.png (CUB's "
                       "segmentations.tgz)")
            return Row(folder / line["img_filename"], values, None, missing, line["listed"])
        mask = (drawn / line["img_filename"]).with_suffix(".png")
        return Row(folder / line["img_filename"], values, mask if mask.is_file() else None, f"no {mask}", line["listed"])

    def _compare(self, found: Mapping[tuple[int, int], int]) -> None:
        if any(found[group] != count for group, count in PUBLISHED.items()):
            kinds, places = (v.classes for v in self.schema.attributes)
            told = ", ".join(f"{found[y, place]} of {count} {kinds[y]}s on {places[place]}" for (y, place), count in PUBLISHED.items())
            warnings.warn(f"{self.title}: this is not all of the published training data: {told}", stacklevel=2)

    def mask(self, row: Row) -> np.ndarray:
        return read_picture_mask(row.mask)

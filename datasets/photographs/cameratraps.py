"""Caltech Camera Traps: animals at fixed cameras, tested at cameras that training has not seen (Beery et al. 2018).

*Recognition in terra incognita*: ``cis`` images are of the cameras of training, ``trans`` images of others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.files.boxes import boxes_to_masks
from datasets.files.idx import DataError
from datasets.files.table import Folders, Row, read_json
from datasets.registry import register
from datasets.schema import Variable

EMPTY = 30  # the category of images without an animal
TESTS = ("trans_test", "cis_test")
_ANNOTATIONS, _IMAGES = "eccv_18_annotation_files", "eccv_18_all_images_sm"


@register
@dataclass(eq=False)
class CameraTraps(Folders):
    """category, location → image, one row for each image and each category that it shows.

    COCO-like ``{train,cis_val,cis_test,trans_test}_annotations.json`` in ``eccv_18_annotation_files`` (``images`` with ``id``,
    ``file_name``, ``width``, ``height``, ``location``; ``annotations`` with ``image_id``, ``category_id`` and, where known, ``bbox``:
    left, top, width, height in pixels of that width and height; ``categories`` with ``id`` and ``name``), and the images in
    ``eccv_18_all_images_sm``, whose size need not be the annotated one. Category 30, empty, is left out. Validation images are
    ``cis_val``. A mask is the union of the row's boxes; with ``skip_broken`` boxes that cannot be used are left out and counted. Each
    camera of training is an environment.

    Args:
        test: ``trans_test``, cameras that training has not seen, or ``cis_test``.

    The other options are those of :class:`datasets.files.table.Folders`.
    """

    name: ClassVar[str] = "cameratraps"
    source: ClassVar[str] = f"{_ANNOTATIONS}/{{train,cis_val,cis_test,trans_test}}_annotations.json and {_IMAGES}/ (eccv_18)"
    sized: ClassVar[bool] = True
    label: ClassVar[str] = "category"
    spurious: ClassVar[tuple[str, ...]] = ("location",)
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("category", "categorical", ("location",), classes=2), Variable("location", "categorical", classes=2),
        Variable("image", "image", ("category", "location"), shape=(3, 224, 224)))

    test: str = "trans_test"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test not in TESTS:
            raise DataError(f"{self.title}: test={self.test!r} must be {' or '.join(TESTS)}")
        names = [name for number, name in self._categories.items() if number != EMPTY]
        if len(names) < 2:
            raise DataError(f"{self._tables['train'][0]} has fewer than two categories besides {EMPTY}, which is left out")
        places = {str(image["location"]) for _, table in self._tables.values() for image in table["images"]}
        places = sorted(places, key=lambda place: (not place.isdigit(), int(place) if place.isdigit() else 0, place))
        if len(places) < 2:
            raise DataError(f"{self.title}: all images in {self._tables['train'][0].parent} are of one location")
        category, location, image = self.variables
        self.variables = (replace(category, classes=tuple(names)), replace(location, classes=tuple(places)), image)

    @cached_property
    def _tables(self) -> dict[str, tuple[Path, dict[str, list[dict[str, Any]]]]]:
        """Split → the file and what it holds."""
        found = {}
        for split, name in (("train", "train"), ("valid", "cis_val"), ("test", self.test)):
            file = f"{name}_annotations.json"
            path = self.find(f"{_ANNOTATIONS}/{file}", file, f"cct/{_ANNOTATIONS}/{file}")
            found[split] = path, read_tables(path, {"images": ("id", "file_name", "width", "height", "location"),
                                                    "annotations": ("image_id", "category_id"), "categories": ("id", "name")})
        return found

    @cached_property
    def _categories(self) -> dict[int, str]:
        """Number → name of the categories that training knows, by number."""
        return dict(sorted((entry["id"], entry["name"]) for entry in self._tables["train"][1]["categories"]))

    def listed(self, split: str) -> list[Row]:
        path, table = self._tables[split]
        folder = self.find(_IMAGES, f"cct/{_IMAGES}")
        images = {image["id"]: image for image in table["images"]}
        boxes: dict[tuple[Any, int], list[Any]] = {}
        for entry in table["annotations"]:
            if entry["image_id"] not in images:
                raise DataError(f"{path}: an annotation is about image {entry['image_id']!r}, which is not among its images")
            if entry["category_id"] not in self._categories and entry["category_id"] != EMPTY:
                valid = ", ".join(f"{number} ({name})" for number, name in self._categories.items())
                raise DataError(f"{path}: image {entry['image_id']!r} has the unknown category {entry['category_id']!r}; valid are {valid}")
            if entry["category_id"] != EMPTY:
                boxes.setdefault((entry["image_id"], entry["category_id"]), []).append(entry.get("bbox"))
        if self.skip_broken:
            wrong = [why for (image, _), given in boxes.items() for box in given if (why := _unusable(box, images[image], path))]
            if wrong:
                warnings.warn(f"{len(wrong)} boxes of the {split} split of {self.title} cannot be used and are left out, first: {wrong[0]}",
                              stacklevel=2)
            boxes = {key: [box for box in given if not _unusable(box, images[key[0]], path)] for key, given in boxes.items()}
        return [self._row(images[image], folder, self._categories[category], given, path) for (image, category), given in boxes.items()]

    def _row(self, image: Mapping[str, Any], folder: Path, category: str, given: list[Any], path: Path) -> Row:
        _, location, _ = self.variables
        values = {"category": self.variables[0].classes.index(category), "location": location.classes.index(str(image["location"]))}
        known = [box for box in given if _is_known(box)]
        if why := next(filter(None, (_unusable(box, image, path) for box in known)), ""):
            raise DataError(f"{why}; mend it, or leave such boxes out: --option skip-broken=true")
        across, down = self.size / image["width"], self.size / image["height"]
        boxes = [[x * across, y * down, (x + w) * across, (y + h) * down] for x, y, w, h in known]
        return Row(folder / image["file_name"], values, (boxes, f"{path}: image {image['id']!r}") if known else None, f"no bbox in {path}")

    def mask(self, row: Row) -> np.ndarray:
        boxes, where = row.mask
        return boxes_to_masks([boxes], (self.size, self.size), where)[0].numpy()

    def environments(self, split: str) -> Tensor:
        """The rank of a row's camera among those of training, by their names; cameras that training has not seen follow."""
        seen = list(dict.fromkeys(sorted(row.values["location"] for row in self.rows("train"))))
        seen += [k for k in range(len(self.variables[1].classes)) if k not in seen]
        return torch.tensor([seen.index(row.values["location"]) for row in self.rows(split)])


def _is_known(box: Any) -> bool:
    """Whether there is a box: tables say that there is none by leaving it out, null or not-a-number."""
    return box is not None and not (isinstance(box, list) and any(isinstance(v, float) and v != v for v in box))


def _unusable(box: Any, image: Mapping[str, Any], path: Path) -> str:
    """What is wrong with a box that there is, in words: it is none, or lies outside its image."""
    wide, high, where = image["width"], image["height"], f"{path}: image {image['id']!r}: bbox {box}"
    if not _is_known(box):
        return ""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box) or box[2] <= 0 or box[3] <= 0:
        return f"{where} is not left, top, width, height with a positive width and height"
    left, top, width, height = box
    if left >= wide or top >= high or left + width <= 0 or top + height <= 0:
        return f"{where} (left, top, width, height) lies outside the image, which is {wide}×{high}"
    return ""


def read_tables(path: Path, needed: Mapping[str, tuple[str, ...]]) -> dict[str, list[dict[str, Any]]]:
    """A json object of lists of objects, each of which has the ``needed`` keys.

    Raises:
        DataError: for a file that is none, a missing list, or an entry without one of its keys.
    """
    table = read_json(path)
    for name, keys in needed.items():
        if not isinstance(table, dict) or not isinstance(table.get(name), list):
            raise DataError(f"{path} has no list {name!r}; it should hold {', '.join(needed)}")
        for number, key in _lacking(table[name], keys):
            raise DataError(f"{path}: entry {number} of {name} has no {key!r}; each has {', '.join(keys)}")
    return table


def _lacking(entries: list[Any], keys: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    return ((number, key) for number, entry in enumerate(entries) for key in keys if not isinstance(entry, dict) or key not in entry)

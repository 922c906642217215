"""Caltech Camera Traps: animals at fixed cameras, tested at cameras that training has not seen (Beery et al. 2018).

*Recognition in terra incognita*: ``cis`` images are of the cameras of training, ``trans`` images of others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import normpath
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.files.boxes import boxes_to_masks
from datasets.files.idx import DataError
from datasets.files.images import shown_size
from datasets.files.masks import COUNT
from datasets.files.table import SKIP, Folders, Row
from datasets.files.text import is_id, is_number, place_name, read_json
from datasets.registry import register
from datasets.schema import Variable

EMPTY, EMPTY_NAME = 30, "empty"  # the category of images without an animal
_ROUNDED = 0.02  # by how much an image's proportions may differ from those annotated
TESTS = ("trans_test", "cis_test")
_ANNOTATIONS, _IMAGES = "eccv_18_annotation_files", "eccv_18_all_images_sm"


@register
@dataclass(eq=False)
class CameraTraps(Folders):
    """category, location → image, one row for each image and each category that it shows.

    COCO-like ``{train,cis_val,cis_test,trans_test}_annotations.json`` in ``eccv_18_annotation_files`` (``images`` with ``id``,
    ``file_name``, ``width``, ``height``, ``location``; ``annotations`` with ``image_id``, ``category_id`` and, where known, ``bbox``:
    left, top, width, height in pixels of that width and height; ``categories`` with ``id`` and ``name``), and the images in
    ``eccv_18_all_images_sm``, whose size need not be the annotated one, but whose proportions must. Each file's categories are known
    by their names, whatever their numbers; the one called empty, 30 as published, is left out. Validation images are
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
        names = [name for name in self._categories["train"].values() if not _is_empty(name)]
        if len(names) < 2:
            raise DataError(f"{self._tables['train'][0]} has fewer than two categories besides {EMPTY}, empty, which is left out")
        self._check_images()
        places = {place_name(image["location"]) for _, table in self._tables.values() for image in table["images"]}
        places = sorted(places, key=lambda place: (not place.isdigit(), int(place) if place.isdigit() else 0, place))
        if len(places) < 2:
            raise DataError(f"{self.title}: all images in {self._tables['train'][0].parent} are of one location")
        category, location, image = self.variables
        self.variables = (replace(category, classes=tuple(names)), replace(location, classes=tuple(places)), image)

    def _check_images(self) -> None:
        """Raises DataError for an image that says nothing of use, is there twice, or is in two splits."""
        files: dict[str, str] = {}
        for path, table in self._tables.values():
            known: set[Any] = set()
            for number, image in enumerate(table["images"]):
                where = f"{path}: image {image['id']!r}"
                if not is_id(image["id"]) or image["id"] in known:
                    raise DataError(f"{path}: entry {number} of images has the id {image['id']!r}, which is "
                                    f"{'that of another image' if is_id(image['id']) else 'no number or text'}; give each its own")
                known.add(image["id"])
                for side in ("width", "height"):
                    if not is_number(image[side]) or image[side] <= 0:
                        raise DataError(f"{where}: {side}={image[side]!r} is no size in pixels; write the annotated image's, as a number")
                if not place_name(image["location"]):
                    raise DataError(f"{where}: location={image['location']!r} names no camera; write its number or name, or leave the "
                                    "image out")
                if not isinstance(image["file_name"], str) or not image["file_name"].strip():
                    raise DataError(f"{where}: file_name={image['file_name']!r} names no file")
                if (other := files.setdefault(normpath(image["file_name"]), where)) != where:
                    raise DataError(f"{where}: file_name={image['file_name']!r} is that of {other} too; leave one of them out")

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
    def _categories(self) -> dict[str, dict[int, str]]:
        """Split → number → name, by number, of the categories of its own file: numbers may differ between files, names may not."""
        return {split: _named(path, table["categories"]) for split, (path, table) in self._tables.items()}

    def listed(self, split: str) -> list[Row]:
        path, table = self._tables[split]
        folder = self.find(_IMAGES, f"cct/{_IMAGES}")
        images = {image["id"]: image for image in table["images"]}
        boxes: dict[tuple[Any, str], list[Any]] = {}
        for number, entry in enumerate(table["annotations"]):
            if not is_id(entry["image_id"]) or entry["image_id"] not in images:
                raise DataError(f"{path}: entry {number} of annotations: an annotation is about image {entry['image_id']!r}, which is not "
                                "among its images")
            category = self._category(split, entry)
            if not _is_empty(category):
                boxes.setdefault((entry["image_id"], category), []).append(entry.get("bbox"))
        if self.skip_broken:
            wrong = [why for (image, _), given in boxes.items() for box in given if (why := _unusable(box, images[image], path))]
            if wrong:
                warnings.warn(f"{len(wrong)} boxes of the {split} split of {self.title} cannot be used and are left out, first: {wrong[0]}",
                              stacklevel=2)
            boxes = {key: [box for box in given if not _unusable(box, images[key[0]], path)] for key, given in boxes.items()}
        return [self._row(images[image], folder, category, given, path) for (image, category), given in boxes.items()]

    def _category(self, split: str, entry: Mapping[str, Any]) -> str:
        """The name of an annotation's category, which training must know too."""
        number, named, classes = entry["category_id"], self._categories[split], self.variables[0].classes
        where = f"{self._tables[split][0]}: image {entry['image_id']!r} has the unknown category {number!r}"
        if not is_number(number) or number not in named:
            if number == EMPTY:
                return EMPTY_NAME
            valid = ", ".join(f"{number} ({name})" for number, name in named.items() if not _is_empty(name))
            raise DataError(f"{where}; valid are {valid}")
        if not _is_empty(named[number]) and named[number] not in classes:
            raise DataError(f"{where} ({named[number]}); {self._tables['train'][0].name} has {', '.join(classes)}")
        return named[number]

    def _row(self, image: Mapping[str, Any], folder: Path, category: str, given: list[Any], path: Path) -> Row:
        _, location, _ = self.variables
        values = {"category": self.variables[0].classes.index(category), "location": location.classes.index(place_name(image["location"]))}
        known = [box for box in given if _is_known(box)]
        if why := next(filter(None, (_unusable(box, image, path) for box in known)), ""):
            raise DataError(f"{why}; mend it, or leave such boxes out: --option skip-broken=true")
        boxes = [[x, y, x + w, y + h] for x, y, w, h in known]
        place = Boxes(boxes, image["width"], image["height"], f"{path}: image {image['id']!r}") if known else None
        return Row(folder / image["file_name"], values, place, f"no bbox in {path}")

    def mask(self, row: Row) -> np.ndarray:
        boxes: Boxes = row.mask
        boxes.check_size(row.image)
        across, down = self.size / boxes.width, self.size / boxes.height
        scaled = [[left * across, top * down, right * across, bottom * down] for left, top, right, bottom in boxes.given]
        return boxes_to_masks([scaled], (self.size, self.size), boxes.where)[0].numpy()

    def environments(self, split: str) -> Tensor:
        """The rank of a row's camera among those of training, by their names; cameras that training has not seen follow."""
        seen = list(dict.fromkeys(sorted(row.values["location"] for row in self.rows("train"))))
        seen += [k for k in range(len(self.variables[1].classes)) if k not in seen]
        return torch.tensor([seen.index(row.values["location"]) for row in self.rows(split)])


@dataclass(frozen=True)
class Boxes:
    """Boxes of an image, left, top, right, bottom ``(K, 4)`` in pixels of the ``width`` and ``height`` that were annotated."""

    given: list[list[float]]
    width: float
    height: float
    where: str

    def check_size(self, path: Path) -> None:
        """Raises DataError for an image of another shape than the annotated one: lying where that stands, or cut."""
        high, wide = shown_size(path, SKIP)
        if abs(high - self.height * wide / self.width) > _ROUNDED * max(2, high) / 2:
            raise DataError(f"{self.where} is annotated at {self.width}×{self.height}, but {path} is {wide}×{high} (width × height), of "
                            f"other proportions, so that the mask of its boxes does not fit; {COUNT}")


def _is_empty(name: str) -> bool:
    return name.strip().lower() == EMPTY_NAME


def _named(path: Path, categories: list[dict[str, Any]]) -> dict[int, str]:
    """Number → name of a file's categories, by number."""
    found: dict[int, str] = {}
    for number, entry in enumerate(categories):
        where = f"{path}: entry {number} of categories"
        if not is_number(entry["id"]) or not isinstance(entry["name"], str) or not entry["name"].strip():
            raise DataError(f"{where} is {entry['id']!r}, {entry['name']!r}; an id is a number, a name is text")
        if entry["id"] in found or entry["name"] in found.values():
            raise DataError(f"{where} is {entry['id']!r}, {entry['name']!r}, of which one is taken by another category; give each its own")
        found[entry["id"]] = entry["name"]
    return dict(sorted(found.items()))


def _is_known(box: Any) -> bool:
    """Whether there is a box: tables say that there is none by leaving it out, null or not-a-number."""
    return box is not None and not (isinstance(box, list) and any(isinstance(v, float) and v != v for v in box))


def _unusable(box: Any, image: Mapping[str, Any], path: Path) -> str:
    """What is wrong with a box that there is, in words: it is none, or lies outside its image."""
    wide, high, where = image["width"], image["height"], f"{path}: image {image['id']!r}: bbox {box}"
    if not _is_known(box):
        return ""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)) or box[2] <= 0 or box[3] <= 0:
        return f"{where} is not left, top, width, height with a positive width and height"
    left, top, width, height = box
    if max(box) <= 1 < min(wide, high):
        return f"{where} seems to be in shares of the image, which is {wide}×{high}; a bbox is in its pixels"
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

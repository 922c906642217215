"""WildCam: coyotes and raccoons at three cameras of iWildCam 2019; two cameras train, the third, where raccoons prevail, tests.

The subset by which IRM is known on photographs (Cloudera Fast Forward 2020, *Causality for machine learning*): 68 % of the
training images show coyotes, 28 % of the test images do, so that always answering raccoon is right in 72 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.files.folder import pictures
from datasets.files.idx import DataError
from datasets.files.table import Folders, Row, class_folders, share_of
from datasets.files.text import place_name, read_json
from datasets.ranges import Seed, within
from datasets.registry import register
from datasets.schema import Variable

CATEGORIES, LOCATIONS = ("coyote", "raccoon"), ("43", "46", "130")
PLACES = {"43": "train_43", "46": "train_46", "130": "test"}  # location → folder
_LISTING = "train_test_filenames.json"
_STEPS = 121

Part = within(0, 1, above=True, below=True, why="it is a share of the training images")


@register
@dataclass(eq=False)
class WildCam(Folders):
    """category, location → image; cameras 43 and 46 are for training, each an environment, and camera 130 is the test.

    ``train_43``, ``train_46`` and ``test``, each with a folder of images for ``coyote`` and ``raccoon``, in ``data_dir`` or
    ``data_dir/wildcam_denoised``. If the listing is there, ``train_test_filenames.json``, a list of ``{category, location, filename}``,
    its images are taken, else all there are. Images are resized to 8/7 of their size and cut at the centre, as published.

    Nothing was published for validation: a share of the images of either training camera, drawn at random within category and
    camera, is held out; all images of these cameras were trained on where results were published. Frames of one visit are nearly
    alike and may be on both sides, so that validation says little of the test.

    Args:
        valid: share of the training cameras' images that is for validation.
        seed: of the choice of these.

    The other options are those of :class:`datasets.files.table.Folders`.
    """

    name: ClassVar[str] = "wildcam"
    source: ClassVar[str] = "train_43/, train_46/ and test/, each with the folders coyote/ and raccoon/"
    crop: ClassVar[float] = 0.875
    label: ClassVar[str] = "category"
    spurious: ClassVar[tuple[str, ...]] = ("location",)
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("category", "binary", ("location",), classes=CATEGORIES), Variable("location", "categorical", classes=LOCATIONS),
        Variable("image", "image", ("category", "location"), shape=(3, 224, 224)))
    # Full batches, one Adam for all steps, one an epoch, the last weights; the penalty, a square, weighs 1 before step 40, then 10⁴.
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "*": {"network": "resnet18", "weights": "default", "frozen": True, "steps": _STEPS, "batch_size": 1_000_000, "optimizer": "adam",
              "beta1": 0.9, "beta2": 0.999, "learning_rate": 1e-3, "l2": 1e-3, "schedule": "constant", "warmup": 0, "weight_decay": 0.0,
              "ema": 0.0, "clip": 1e9, "skip": 1e9},
        "irm": {"penalty": 1e4, "anneal": 40 / _STEPS, "unbiased": False, "reset": False}}

    valid: Part[float] = 0.1
    seed: Seed[int] = 0

    def listed(self, split: str) -> list[Row]:
        if split == "test":
            return self._of("130")
        rows = self._of("43") + self._of("46")
        held = share_of([len(CATEGORIES) * row.values["location"] + row.values["category"] for row in rows], self.valid, self.seed)
        return [row for row, out in zip(rows, held, strict=True) if out == (split == "valid")]

    def _of(self, location: str) -> list[Row]:
        """All images of a camera, by category and name."""
        folder = self.find(PLACES[location], f"wildcam_denoised/{PLACES[location]}")
        folders = class_folders(folder, CATEGORIES, self.title)
        listing = next((path for path in (self.data_dir / _LISTING, folder.parent / _LISTING) if path.is_file()), None)
        named = _named(listing) if listing else [(category, location, path.name) for category in CATEGORIES
                                                 for path in pictures(folders[category])]
        values = {"location": LOCATIONS.index(location)}
        return [Row(folders[category] / name, {**values, "category": CATEGORIES.index(category)})
                for category, place, name in sorted(named) if place == location]

    def environments(self, split: str) -> Tensor:
        """0 and 1 for cameras 43 and 46, 2 for camera 130."""
        return torch.tensor([row.values["location"] for row in self.rows(split)])


def _named(path: Path) -> list[tuple[str, str, str]]:
    """Category, location and file name of each image in the listing.

    Raises:
        DataError: for an entry without one of these, of an unknown category or location, or that is listed before.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path} is no list of {{category, location, filename}}")
    found: dict[tuple[str, str, str], int] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"category", "location", "filename"} <= set(entry):
            raise DataError(f"{path}: entry {number} must have category, location and filename; it is {entry!r}")
        category, location = entry["category"], place_name(entry["location"])
        for name, value, valid in (("category", category, CATEGORIES), ("location", location, LOCATIONS)):
            if value not in valid:
                raise DataError(f"{path}: entry {number} has the unknown {name} {str(entry[name])!r}; valid are {', '.join(valid)}")
        if not isinstance(entry["filename"], str) or not entry["filename"].strip():
            raise DataError(f"{path}: entry {number} names no file: {entry!r}")
        image = category, location, normpath(entry["filename"])
        if image in found:  # would be trained on, and validated with
            raise DataError(f"{path}: entry {number} is that of entry {found[image]} again: {entry!r}; leave one of them out")
        found[image] = number
    return list(found)

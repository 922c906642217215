"""Two folders of images of one's own: ``canonical/``, and ``transformed/`` by mechanisms that need not be known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.base import SPLITS
from datasets.files.folder import common_size, hidden, image_paths, pictures, read_folder
from datasets.ranges import NotNegative, Seed
from datasets.registry import register
from datasets.schema import SchemaError, Variable
from datasets.unpaired import UnpairedDataset

_OF_TEN = {"train": range(8), "valid": (8,), "test": (9,)}  # which of every ten subjects


@register
@dataclass(eq=False)
class UnpairedFolders(UnpairedDataset):
    """Images of ``data_dir/canonical`` and ``data_dir/transformed``, divided at random into three splits (80 : 10 : 10).

    Where ``transformed`` has sub-folders, each is one mechanism, named after it, by which experts are judged, not trained;
    hidden ones do not count. All images are held in memory.

    Files that are alike but for folder and ending (``blurred/7.png``, ``dark/7.jpg``, ``canonical/7.png``) show one subject. It
    is subjects that are divided, so none is in two splits. The two folders should not show the same ones: a subject of
    both is in one split on both sides, where its images are in no relation, since each side has an order of its own.

    Args:
        data_dir: folder with the two folders.
        size: side to which images are resized; 0 leaves them as they are, then a multiple of 4.
        channels: 1 for grey, 3 for colours.
        seed: of the division.

    Raises:
        SchemaError: for a missing or empty folder, images beside sub-folders, of different sizes, or of too few subjects.
    """

    name: ClassVar[str] = "unpaired-folders"
    variables: ClassVar[tuple[Variable, ...]] = (Variable("image", "image", shape=(1, 32, 32)),)

    data_dir: Path | None = None
    size: NotNegative[int] = 0
    channels: int = 1
    seed: Seed[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is None:
            raise SchemaError(f"{self.title} needs --data-dir, a folder with the folders canonical/ and transformed/")
        if self.channels not in (1, 3):
            raise SchemaError(f"{self.title}: channels={self.channels} must be 1 or 3")
        self.data_dir = Path(self.data_dir).expanduser()
        parts = {name: self.data_dir / name for name in ("canonical", "transformed")}
        if missing := [str(path) for path in parts.values() if not path.is_dir()]:
            raise SchemaError(f"{self.title}: folder {missing[0]} does not exist; put images into {parts['canonical']} and "
                              f"{parts['transformed']}")
        inner = sorted(path for path in parts["transformed"].iterdir() if path.is_dir() and not hidden(path.name))
        if inner and (loose := pictures(parts["transformed"])):
            raise SchemaError(f"{self.title}: {parts['transformed']} has images ({len(loose)}, as {loose[0].name}) beside sub-folders "
                              f"({', '.join(path.name for path in inner)}), each of which is a mechanism; give those images a sub-folder "
                              "of their own, or take the sub-folders away")
        self._folders = inner or [parts["transformed"]]
        sizes = {}
        for folder in (parts["canonical"], *self._folders):
            sizes.setdefault(common_size(image_paths(folder)), folder)
        if len(sizes) > 1 and not self.size:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise SchemaError(f"images of {first} have {one[0]} × {one[1]} pixels, those of {second} {other[0]} × {other[1]}; resize "
                              "them, or let --option size=64 do it")
        height, width = (self.size, self.size) if self.size else next(iter(sizes))
        image = Variable("image", "image", shape=(self.channels, height, width))
        self.mechanisms = tuple(folder.name for folder in inner) if len(inner) > 1 else ()
        self.variables = (image,)
        if self.mechanisms:
            self.variables = (Variable("mechanism", "categorical", classes=self.mechanisms),
                              Variable("image", "image", ("mechanism",), shape=image.shape))

    @cached_property
    def _images(self) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Split → canonical images, transformed images, and the latter's mechanism and subject."""
        shape, random = self.schema.image.shape, np.random.default_rng(self.seed)
        folders = {"canonical": [self.data_dir / "canonical"], "transformed": self._folders}
        read = {name: [read_folder(folder, shape) for folder in given] for name, given in folders.items()}
        stems = {name: [path.stem for paths, _ in parts for path in paths] for name, parts in read.items()}
        images = {name: torch.cat([pixels for _, pixels in parts]) for name, parts in read.items()}
        mechanism = torch.arange(len(self._folders)).repeat_interleave(torch.tensor([len(paths) for paths, _ in read["transformed"]]))
        for name, given in stems.items():
            if (count := len(set(given))) < 10:
                told = f"{count} {name} images" if count == len(given) else f"{len(given)} {name} images of {count} subjects (file names)"
                raise SchemaError(f"{self.title}: {told} are too few for three splits; at least 10 are needed")
        place = self._order(set(stems["canonical"]), set(stems["transformed"]), random)
        found = {}
        for split in SPLITS:
            of_canonical, of_transformed = (
                torch.from_numpy(random.permutation([row for row, stem in enumerate(given) if place[stem] % 10 in _OF_TEN[split]]))
                for given in stems.values())
            subject = torch.tensor([place[stem] for stem in stems["transformed"]])[of_transformed]
            found[split] = images["canonical"][of_canonical], images["transformed"][of_transformed], mechanism[of_transformed], subject
        return found

    @staticmethod
    def _order(canonical: set[str], transformed: set[str], random: np.random.Generator) -> dict[str, int]:
        """Each subject's place, at random, but those of both sides between those of one.

        So the subjects of a side follow one another, and every tenth of them is every tenth of that side.
        """
        groups = (canonical - transformed, canonical & transformed, transformed - canonical)
        return {str(stem): k for k, stem in enumerate(stem for group in groups for stem in random.permutation(sorted(group)))}

    def canonical(self, split: str) -> Tensor:
        return self._images[split][0]

    def subjects(self, split: str) -> Tensor:
        return self._images[split][3]

    def load(self, split: str) -> dict[str, Tensor]:
        _, images, mechanism, _ = self._images[split]
        return {"image": images, **({"mechanism": mechanism} if self.mechanisms else {})}

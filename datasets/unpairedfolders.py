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
from datasets.imagefolder import common_size, image_paths, read_folder
from datasets.registry import register
from datasets.schema import SchemaError, Variable
from datasets.unpaired import UnpairedDataset

_SHARES = (0.8, 0.9)  # where validation and test begin


@register
@dataclass(eq=False)
class UnpairedFolders(UnpairedDataset):
    """Images of ``data_dir/canonical`` and ``data_dir/transformed``, divided at random into three splits (80 : 10 : 10).

    Where ``transformed`` has sub-folders, each is one mechanism, named after it, by which experts are judged, not trained.
    The two folders must not show the same subjects. All images are held in memory.

    Args:
        data_dir: folder with the two folders.
        size: side to which images are resized; 0 leaves them as they are, then a multiple of 4.
        channels: 1 for grey, 3 for colours.
        seed: of the division.

    Raises:
        SchemaError: for a missing or empty folder, images of different sizes, or too few of them.
    """

    name: ClassVar[str] = "unpaired-folders"
    variables: ClassVar[tuple[Variable, ...]] = (Variable("image", "image", shape=(1, 32, 32)),)

    data_dir: Path | None = None
    size: int = 0
    channels: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data_dir is None:
            raise SchemaError(f"{self.title} needs --data-dir, a folder with the folders canonical/ and transformed/")
        if self.channels not in (1, 3) or self.size < 0:
            raise SchemaError(f"{self.title}: channels={self.channels} must be 1 or 3, size={self.size} not negative")
        self.data_dir = Path(self.data_dir).expanduser()
        parts = {name: self.data_dir / name for name in ("canonical", "transformed")}
        if missing := [str(path) for path in parts.values() if not path.is_dir()]:
            raise SchemaError(f"{self.title}: folder {missing[0]} does not exist; put images into {parts['canonical']} and "
                              f"{parts['transformed']}")
        inner = sorted(path for path in parts["transformed"].iterdir() if path.is_dir())
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
    def _images(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Split → canonical images, transformed images, and the latter's mechanism."""
        shape = self.schema.image.shape
        canonical = read_folder(self.data_dir / "canonical", shape)[1]
        folders = [read_folder(folder, shape)[1] for folder in self._folders]
        transformed = torch.cat(folders)
        mechanism = torch.arange(len(folders)).repeat_interleave(torch.tensor([len(images) for images in folders]))
        random, order = np.random.default_rng(self.seed), {}
        for name, images in (("canonical", canonical), ("transformed", transformed)):
            if len(images) < 10:
                raise SchemaError(f"{self.title}: {len(images)} {name} images are too few for three splits; at least 10 are needed")
            order[name] = np.split(random.permutation(len(images)), [int(share * len(images)) for share in _SHARES])
        return {split: (canonical[order["canonical"][k]], transformed[order["transformed"][k]], mechanism[order["transformed"][k]])
                for k, split in enumerate(SPLITS)}

    def canonical(self, split: str) -> Tensor:
        return self._images[split][0]

    def load(self, split: str) -> dict[str, Tensor]:
        _, images, mechanism = self._images[split]
        return {"image": images, **({"mechanism": mechanism} if self.mechanisms else {})}

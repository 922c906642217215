"""What a training of experts sees: transformed images, and beside each an unrelated canonical one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.base import SPLITS, LazyImages, Split
from datasets.schema import SchemaError
from datasets.unpaired import UnpairedDataset
from mechanisms.training.noise import some_of

_LOOKED_AT = 500  # transformed images of each split that are compared with all canonical ones


@dataclass(frozen=True)
class Cycled:
    """``images`` again and again, ``count`` in all, as a lazy column."""

    images: Tensor | LazyImages
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray | Tensor:
        return self.images[index % len(self.images)]


def unlabelled(dataset: UnpairedDataset, split: str) -> Split:
    """A split's images and the column ``canonical``, uint8 ``(N, C, H, W)``; no attribute, so that none can be used.

    Raises:
        SchemaError: where there is no canonical image, or images of a kind that experts do not take.
    """
    rows, canonical = dataset.split(split), dataset.canonical(split)
    if len(canonical) == 0:
        raise SchemaError(f"the {split} split of {dataset.title} has no canonical images, so there is nothing to imitate; add some")
    if tuple(torch.as_tensor(canonical[0]).shape) != dataset.schema.image.shape:
        raise SchemaError(f"canonical images of {dataset.title} are {tuple(torch.as_tensor(canonical[0]).shape)}, transformed ones "
                          f"{dataset.schema.image.shape}; both must be alike")
    return Split(split, rows.images, {"canonical": Cycled(canonical, len(rows))})


def check_apart(dataset: UnpairedDataset) -> None:
    """Raises SchemaError if most transformed images are canonical ones too, byte for byte, of whichever splits.

    All canonical images are read, and of transformed ones a sample of each split.
    """
    canonical, transformed = [dataset.canonical(split) for split in SPLITS], [dataset.split(split).images for split in SPLITS]
    known = {_digest(images[k]) for images in canonical for k in range(len(images))}
    found = [_digest(images[int(k)]) in known for images in transformed for k in some_of(len(images), _LOOKED_AT, 0)]
    if sum(found) > len(found) / 2:
        raise SchemaError(f"{sum(found)} of {len(found)} transformed images of {dataset.title} are canonical ones, byte for byte: there is "
                          "nothing to invert. Put images that a mechanism acted upon into transformed/, of other subjects than canonical/ "
                          "shows")


def _digest(image: np.ndarray | Tensor) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(torch.as_tensor(image).numpy()).tobytes()).digest()

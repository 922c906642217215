"""Images of several mechanisms beside canonical images: no pair, and no label that training may look at."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from datasets.base import CausalDataset, LazyImages, Split, fingerprint
from datasets.mnist.transforms import Transform
from datasets.schema import SchemaError

_FINGERPRINTED = 64  # canonical images


class UnpairedDataset(CausalDataset):
    """Canonical images P and, as the rows of its splits, images of the mixture of M_1(P), …, M_K(P).

    The canonical images of a split show other subjects than its rows do. The mechanism of a row is the attribute
    ``mechanism`` where it is known; training never sees it.

    Attributes:
        mechanisms: names of the true mechanisms, in the order of the classes of ``mechanism``; empty if unknown.
        transformations: what makes the images of each of ``mechanisms`` from canonical ones; empty if unknown.
        margin: black pixels on each side of an image, which images from elsewhere need too; a mechanism may act on them.
    """

    mechanisms: tuple[str, ...] = ()
    transformations: tuple[Transform, ...] = ()
    margin: ClassVar[int] = 0

    def canonical(self, split: str) -> Tensor | LazyImages:
        """Canonical images of a split, uint8 ``(M, C, H, W)`` or lazy."""
        raise NotImplementedError(f"{type(self).__name__} must define canonical(split)")

    def clean(self, split: str) -> Tensor | None:
        """Each row of a split before its mechanism acted, uint8 ``(N, C, H, W)``; None if unknown."""
        return None

    @cached_property
    def training_fingerprint(self) -> str:
        """A hash of the first training rows, and of canonical training images from first to last."""
        canonical = self.canonical("train")
        index = torch.linspace(0, len(canonical) - 1, min(_FINGERPRINTED, len(canonical))).long()
        told = super().training_fingerprint + fingerprint(Split("train", canonical, {}), index, lazy=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def unpaired(dataset: CausalDataset) -> UnpairedDataset:
    """``dataset``, if it has canonical images.

    Raises:
        SchemaError: if it has none; the data sets that do are named.
    """
    if not isinstance(dataset, UnpairedDataset):
        raise SchemaError(f"{dataset.title} has no canonical images beside transformed ones; take --dataset transformed-mnist, or "
                          "--dataset unpaired-folders --data-dir FOLDER with the folders canonical/ and transformed/; a data "
                          "set of your own derives from datasets.UnpairedDataset and defines canonical(split), see docs/experts.md")
    return dataset

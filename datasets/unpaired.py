"""Images of several mechanisms beside canonical images: no pair, and no label that training may look at."""

from __future__ import annotations

from torch import Tensor

from datasets.base import CausalDataset, LazyImages
from datasets.schema import SchemaError


class UnpairedDataset(CausalDataset):
    """Canonical images P and, as the rows of its splits, images of the mixture of M_1(P), …, M_K(P).

    The canonical images of a split show other subjects than its rows do. The mechanism of a row is the attribute
    ``mechanism`` where it is known; training never sees it.

    Attributes:
        mechanisms: names of the true mechanisms, in the order of the classes of ``mechanism``; empty if unknown.
    """

    mechanisms: tuple[str, ...] = ()

    def canonical(self, split: str) -> Tensor | LazyImages:
        """Canonical images of a split, uint8 ``(M, C, H, W)`` or lazy."""
        raise NotImplementedError(f"{type(self).__name__} must define canonical(split)")

    def clean(self, split: str) -> Tensor | None:
        """Each row of a split before its mechanism acted, uint8 ``(N, C, H, W)``; None if unknown."""
        return None


def unpaired(dataset: CausalDataset) -> UnpairedDataset:
    """``dataset``, if it has canonical images.

    Raises:
        SchemaError: if it has none; the data sets that do are named.
    """
    if not isinstance(dataset, UnpairedDataset):
        raise SchemaError(f"{dataset.title} has no canonical images beside transformed ones; take --dataset transformed-mnist, or "
                          "--dataset unpaired-folders --data-dir FOLDER with the folders canonical/ and transformed/")
    return dataset

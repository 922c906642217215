"""What the registries know, so that a law about all of a kind holds for the next one too."""

from __future__ import annotations

from datasets.base import CausalDataset
from datasets.registry import names


def data_sets(kind: type[CausalDataset] = CausalDataset) -> list[str]:
    """Names of the registered data sets that are of a kind: of a class or one of its descendants."""
    known, waiting, found = set(names()), [kind], set()  # names() imports every file, and with it every descendant
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found |= {cls.name} & known
    return sorted(found)

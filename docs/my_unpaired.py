"""A data set of one's own for experts that compete: two piles of images, of unknown mechanisms.

    python -m mechanisms.experts --dataset docs/my_unpaired.py --experts 2 --steps 500 --run runs/mine
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from datasets import SPLITS, UnpairedDataset, Variable

SIZES = {"train": 2000, "valid": 200, "test": 200}


@dataclass(eq=False)
class Bars(UnpairedDataset):
    """Bright bars on black; of the others, half are dim and half are negatives. Leave ``mechanism`` out where it is unknown."""

    name: ClassVar[str] = "bars"
    mechanisms: ClassVar[tuple[str, ...]] = ("dim", "negative")
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("mechanism", "categorical", classes=("dim", "negative")),
        Variable("image", "image", ("mechanism",), shape=(1, 32, 32)),
    )

    def canonical(self, split: str) -> Tensor:
        """Untransformed images of other subjects than the rows show, uint8 ``(M, 1, 32, 32)``."""
        return self._bars(split, 0)

    def load(self, split: str) -> dict[str, Tensor]:
        """The rows: transformed images, and, if it is known, the mechanism of each, by which experts are judged."""
        images, mechanism = self._bars(split, 1), torch.arange(SIZES[split]) % 2
        moved = torch.where(mechanism[:, None, None, None] == 0, images // 3, 255 - images)
        return {"mechanism": mechanism, "image": moved}

    def _bars(self, split: str, pile: int) -> Tensor:
        """Horizontal bars of random place, length and brightness."""
        random = torch.Generator().manual_seed(10 * SPLITS.index(split) + pile)
        images = torch.zeros(SIZES[split], 1, 32, 32, dtype=torch.uint8)
        for image in images:
            ranges = (4, 24), (2, 8), (12, 22), (150, 256)
            top, left, length, grey = (int(torch.randint(*bounds, (), generator=random)) for bounds in ranges)
            image[:, top:top + 4, left:left + length] = grey
        return images

"""Studies of what training could do without: all of its rows, and masks that are right.

Both are a function of the data alone, the same for all algorithms and seeds, so that these differ in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.base import LazyImages
from mechanisms.training.noise import seeded

_ROWS, _EDGES = 21, 22  # streams of random numbers


@dataclass(frozen=True)
class Study:
    """What training is given.

    Attributes:
        data_fraction: share of the training rows, in (0, 1]; see :func:`kept_rows`.
        box_noise: instead of masks, boxes with edges this wrong; see :class:`NoisyBoxes`. None for the masks as they are.
    """

    data_fraction: float = 1.0
    box_noise: float | None = None

    def describe(self, masks: bool) -> dict[str, Any]:
        """Plain values that tell trainings of different studies apart; without what is as always.

        Args:
            masks: whether the training looks at these.
        """
        return {**({"data_fraction": self.data_fraction} if self.data_fraction < 1 else {}),
                **({"box_noise": self.box_noise} if masks and self.box_noise is not None else {})}


def kept_rows(count: int, fraction: float) -> Tensor:
    """Which of ``count`` rows are kept, in order: a share drawn at random whatever their groups, one row at least.

    The rows of a smaller share are among those of any larger one.
    """
    order = torch.randperm(count, generator=seeded(_ROWS))
    return order[:max(1, round(fraction * count))].sort().values


class NoisyBoxes:
    """``boxes[i]`` is mask i's bounding rectangle with each edge moved by a uniform share of up to ``noise`` of its side, bool ``(H, W)``.

    Edges move in or out, independently, to whole pixels; what protrudes from the image is cut off, and one row and column remain
    at least. A box that would leave no background keeps its edges; an empty mask stays empty. Row i's draws depend on i alone.
    """

    def __init__(self, masks: Tensor | LazyImages, noise: float) -> None:
        self.masks, self.noise = masks, noise
        self.draws = torch.rand(len(masks), 4, generator=seeded(_EDGES)) * 2 - 1

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Tensor:
        mask = torch.as_tensor(self.masks[index])
        if not mask.any():
            return torch.zeros_like(mask)
        exact = [_extent(mask.any(1 - axis)) for axis in (0, 1)]
        moved = [self._moved(span, side, self.draws[index, 2 * axis:2 * axis + 2].tolist())
                 for axis, (span, side) in enumerate(zip(exact, mask.shape, strict=True))]
        full = all(span == (0, side) for span, side in zip(moved, mask.shape, strict=True))
        (top, bottom), (left, right) = exact if full else moved
        box = torch.zeros_like(mask)
        box[top:bottom, left:right] = True
        return box

    def _moved(self, span: tuple[int, int], side: int, draws: list[float]) -> tuple[int, int]:
        length = span[1] - span[0]
        low, high = sorted(round(edge + draw * self.noise * length) for edge, draw in zip(span, draws, strict=True))
        low = min(max(low, 0), side - 1)
        return low, min(max(high, low + 1), side)


def _extent(line: Tensor) -> tuple[int, int]:
    """First true place and the one after the last; nothing of a line without any."""
    places = line.nonzero().flatten()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)

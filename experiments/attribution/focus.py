"""Focus: how much of what a classifier looks at is the foreground, by an attribution's maps and the foreground's masks.

Three scores of a map a and a mask m, as in Chang et al. 2021 (CVPR), each in [0, 1]; all are larger where more of the map is
inside, but none says that a classifier is right:

- share of squared attribution inside, Σ m·a² / Σ a²;
- average precision (area under precision against recall) of |a| as a score for being foreground;
- intersection over union of the mask and as many pixels with the greatest |a|; of equal ones at the edge their share counts.

A map that is 0 everywhere points nowhere; it has the scores of one that is the same everywhere: :func:`chance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.task import Task
from experiments.attribution.methods import attribution
from experiments.metrics.classification import average_precision
from mechanisms.runs.files import RunError
from mechanisms.runs.tables import mean_over

MEANINGS: Mapping[str, tuple[str, str]] = {  # metric → which is better, what it means
    "focus_share": ("higher", "share of squared attribution to the own class that is inside the foreground's mask"),
    "focus_aupr": ("higher", "average precision of the attribution's size as a score for being in the mask"),
    "focus_iou": ("higher", "intersection over union of the mask and as many pixels with the greatest attribution"),
}
TITLES = {"focus_share": "focus: share inside", "focus_aupr": "focus: AUPR", "focus_iou": "focus: IoU"}
NONE = "none"
_RUNS, _MOST, _FEWEST = 6400, 256, 16  # of the network, in all; images


@dataclass(frozen=True)
class Foreground:
    """Images of which it is known where the foreground is: neither nowhere nor everywhere.

    Attributes:
        rows: ``(B,)``, which of the images that were asked about.
        masks: bool ``(B, H, W)``, of these rows.
        without: how many have none, or nothing else.
    """

    rows: Tensor
    masks: Tensor
    without: int


def foreground(task: Task, split: str, index: Tensor) -> Foreground | None:
    """The foreground of rows ``index (B,)`` of a split; None where the data set does not know it, or knows it of none of them."""
    if (all_masks := task.masks(split)) is None:
        return None
    masks = all_masks[index] if isinstance(all_masks, Tensor) else torch.stack([torch.as_tensor(all_masks[int(i)]) for i in index])
    size = masks.flatten(1).sum(1)
    rows = ((size > 0) & (size < masks[0].numel())).nonzero().flatten()
    return Foreground(rows, masks[rows], len(masks) - len(rows)) if len(rows) else None


def scores(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The three scores of each image, ``(B,)`` float64 each.

    Args:
        maps: ``(B, H, W)``, signed or not.
        masks: bool ``(B, H, W)``, neither empty nor full.

    Raises:
        RunError: for other shapes, an empty or full mask, or attributions that are not finite.
    """
    if maps.shape != masks.shape or masks.dtype != torch.bool or maps.ndim != 3:
        raise RunError(f"maps {tuple(maps.shape)} and masks {masks.dtype} {tuple(masks.shape)}: give maps (B, H, W), and bool masks of "
                       "that shape")
    if not torch.isfinite(maps).all():
        raise RunError(f"the attributions of {int((~torch.isfinite(maps)).flatten(1).any(1).sum())} of {len(maps)} images are not finite")
    size, inside = maps.detach().double().abs().flatten(1).cpu(), masks.flatten(1).cpu()
    if len(bad := ((inside.sum(1) == 0) | inside.all(1)).nonzero().flatten()):
        raise RunError(f"mask {int(bad[0])} is empty or full: there is nothing inside, or nothing outside, to tell apart")
    size = size / size.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)  # squares of tiny ones would vanish
    size = torch.where(size.any(1, keepdim=True), size, torch.ones_like(size))
    share = (size.square() * inside).sum(1) / size.square().sum(1)
    return {"focus_share": share, "focus_aupr": average_precision(size, inside), "focus_iou": _overlap(size, inside)}


def _overlap(size: Tensor, inside: Tensor) -> Tensor:
    count = inside.sum(1, keepdim=True)
    edge = size.sort(1, descending=True).values.gather(1, count - 1)
    above, equal = size > edge, size == edge
    part = (count - above.sum(1, keepdim=True)).double() / equal.sum(1, keepdim=True)  # of the equal ones, so many are taken
    both = (above & inside).sum(1) + part[:, 0] * (equal & inside).sum(1)
    return both / (2 * count[:, 0] - both)


def chance(masks: Tensor) -> dict[str, Tensor]:
    """The scores of a map that is the same everywhere: of a mask that is a share p of the image p, p and p / (2 − p)."""
    return scores(torch.ones(masks.shape), masks)


def summary(image_scores: Mapping[str, Tensor]) -> dict[str, tuple[float, float | None]]:
    """Mean over images and its standard error; None for the error of one image."""
    return {name: mean_over(values.tolist()) for name, values in image_scores.items()}


def images_for(method: str, count: int) -> int:
    """How many of ``count`` images are looked at, so that the network is run some thousand times at most: all but for slow methods."""
    return min(count, max(_FEWEST, min(_MOST, _RUNS // attribution(method).passes)))


def focus(network: nn.Module, images: Tensor, labels: Tensor, masks: Tensor, method: str = "saliency") -> dict[str, Tensor]:
    """The scores of a network's attributions to each image's own class ``labels (B,)``.

    Raises:
        RunError: see :class:`experiments.attribution.methods.Attribution` and :func:`scores`.
    """
    return scores(attribution(method)(network, images, labels).cpu(), masks)

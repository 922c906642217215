"""Masks: the pixels of training images that a network relies on most, found by XGradCAM and dropped.

Asgari et al. 2022, *MaskTune*, §3: of each image's map, the values above mean + 2·std of its positive ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.base import LazyImages, Split
from experiments.attribution.xgradcam import xgradcam
from mechanisms.runs.files import RunError, load, save

KIND = "masks"
_BATCH = 128  # larger ones fall out of the processor's cache and are slower


@dataclass(frozen=True)
class Masks:
    """What is dropped of each image.

    Attributes:
        dropped: bool ``(N, H, W)``, of all channels.
        blank: bool ``(N,)``, images whose map shows no evidence anywhere.
    """

    dropped: Tensor
    blank: Tensor

    def __len__(self) -> int:
        return len(self.dropped)

    @property
    def counts(self) -> Tensor:
        """Pixels dropped of each image, ``(N,)``."""
        return self.dropped.flatten(1).sum(1)

    def with_earlier(self, earlier: Masks) -> Masks:
        """What either drops; a map is blank if this one is."""
        return Masks(self.dropped | earlier.dropped, self.blank)

    def scattered(self, generator: torch.Generator) -> Masks:
        """As many pixels of each image, at random places: what masking does without looking."""
        scattered = torch.empty_like(self.dropped)
        for rows in torch.arange(len(self)).split(4096):
            order = torch.rand(len(rows), self.dropped[0].numel(), generator=generator).argsort(1)
            ranks = torch.arange(order.shape[1]).expand_as(order)
            places = torch.zeros(order.shape, dtype=torch.bool).scatter_(1, order, ranks < self.counts[rows][:, None])
            scattered[rows] = places.view(len(rows), *self.dropped.shape[1:])
        return Masks(scattered, self.blank)

    def report(self) -> str:
        """One line: how much is dropped, and how often nothing."""
        share = 100 * float(self.dropped.float().mean())
        return f"masks of {len(self):,} images: {share:.1f} % of pixels dropped, {int((self.counts == 0).sum()):,} images keep all"

    def warning(self) -> str:
        """What to be told about maps without evidence; empty if there are none."""
        if not (blank := int(self.blank.sum())):
            return ""
        return (f"the maps of {blank:,} of {len(self):,} images are 0 everywhere: XGradCAM finds nothing that speaks for the predicted "
                "class, so these images are not masked")


def above(maps: Tensor, sigmas: float = 2.0) -> Tensor:
    """Pixels above mean + ``sigmas``·std of a map's positive values, bool ``(B, H, W)``; none of a map that is 0 everywhere."""
    positive = (maps > 0).float()
    count = positive.sum((1, 2), keepdim=True).clamp(min=1)
    mean = (maps * positive).sum((1, 2), keepdim=True) / count
    variance = ((maps - mean).square() * positive).sum((1, 2), keepdim=True) / count
    return (maps > mean + sigmas * variance.sqrt()) & (maps > 0)


def find_masks(network: nn.Module, layer: str, split: Split, sigmas: float = 2.0) -> Masks:
    """The masks of all images of a split, of the class that ``network`` predicts for each.

    Raises:
        RunError: for a layer that XGradCAM cannot read, see :func:`experiments.attribution.xgradcam.xgradcam`.
    """
    device = next(network.parameters()).device
    dropped, blank = [], []
    parts = torch.arange(len(split)).split(_BATCH)
    for rows in tqdm(parts, desc="masks", unit="batch", dynamic_ncols=True, leave=False, disable=len(parts) == 1):
        maps = xgradcam(network, split.batch(rows)["image"].to(device), layer)
        dropped.append(above(maps, sigmas).cpu())
        blank.append((maps == 0).all(2).all(1).cpu())
    return Masks(torch.cat(dropped), torch.cat(blank))


def masked(split: Split, masks: Masks) -> Split:
    """The same rows without the pixels that are dropped: 0 in all channels."""
    if len(masks) != len(split):
        raise RunError(f"{len(masks)} masks cannot be laid on {len(split)} images of the {split.name} split; make them anew")
    images = split.images.masked_fill(masks.dropped[:, None], 0) if split.in_memory else _MaskedImages(split.images, masks.dropped)
    return Split(split.name, images, split.attributes)


class _MaskedImages:
    """Images that are masked when they are read."""

    def __init__(self, images: LazyImages, dropped: Tensor) -> None:
        self.images, self.dropped = images, dropped

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.as_tensor(self.images[index]).masked_fill(self.dropped[index], 0)


# -------------------------------------------------------------------------------------------------------- on disk
def save_masks(path: Path, masks: Masks, origin: Mapping[str, Any]) -> None:
    """Write masks, one bit a pixel, with what they come from, whole or not at all."""
    packed = torch.from_numpy(np.packbits(masks.dropped.flatten(1).numpy(), axis=1))
    save(path, {"kind": KIND, "origin": dict(origin), "shape": list(masks.dropped.shape), "dropped": packed, "blank": masks.blank})


def load_masks(path: Path, origin: Mapping[str, Any] | None = None) -> Masks | None:
    """What :func:`save_masks` wrote; None if there is nothing, or if it comes from anything else than ``origin``, if given.

    Raises:
        RunError: for a damaged file.
    """
    if not path.exists():
        return None
    state = load(path, KIND)
    if origin is not None and state["origin"] != dict(origin):
        return None
    count, height, width = state["shape"]
    bits = np.unpackbits(state["dropped"].numpy(), axis=1, count=height * width)
    return Masks(torch.from_numpy(bits).bool().view(count, height, width), state["blank"])

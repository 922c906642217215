"""Augmentation of image batches by tensor operations; attributes stay, so only use what does not change them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Batch = dict[str, Tensor]
Augmentation = Callable[[Batch, torch.Generator, int, int], Batch]


def augmentation(shift: int = 0, flip: bool = False) -> Augmentation | None:
    """Random translations by up to ``shift`` pixels (edges repeated) and random mirroring; None if neither is asked for.

    The result is a function ``(batch, generator, rank, world) → batch``: random numbers are drawn for the global batch
    and each process keeps its own rows, so that two processes see what one would.
    """
    if not (shift or flip):
        return None

    def augment(batch: Batch, generator: torch.Generator, rank: int, world: int) -> Batch:
        images = batch["image"]
        rows, height, width = len(images), *images.shape[-2:]
        own = slice(rank * rows, (rank + 1) * rows)
        if shift:
            offsets = torch.randint(2 * shift + 1, (2, rows * world), generator=generator)[:, own].to(images.device)
            padded = F.pad(images, (shift,) * 4, mode="replicate")
            y = offsets[0, :, None] + torch.arange(height, device=images.device)
            x = offsets[1, :, None] + torch.arange(width, device=images.device)
            batch_index = torch.arange(rows, device=images.device)[:, None, None]
            images = padded.permute(0, 2, 3, 1)[batch_index, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
        if flip:
            mirrored = (torch.rand(rows * world, generator=generator)[own] < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return {**batch, "image": images.contiguous()}

    return augment

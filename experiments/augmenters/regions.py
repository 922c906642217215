"""Regions of a batch of images: the foreground's bounding rectangles, strips of background, and what fills them."""

from __future__ import annotations

import torch
from torch import Tensor

GREY = 0.5
_SPREAD = 0.2  # of the noise on a colour, Chang et al. 2021
_AT_ONCE = 8  # images


def has_foreground(masks: Tensor) -> Tensor:
    """Which masks are not empty, bool ``(B,)``."""
    return masks.flatten(1).any(1)


def rectangles(masks: Tensor) -> Tensor:
    """The smallest rectangle around each mask, int64 ``(B, 4)``: top, bottom, left, right, ends excluded; 0, 0, 0, 0 if it is empty."""
    ends = []
    for along in (masks.any(2), masks.any(1)):  # (B, H), (B, W)
        seen, length = along.to(torch.uint8), along.shape[1]
        empty = ~along.any(1)
        ends += [seen.argmax(1), (length - seen.flip(1).argmax(1)).masked_fill(empty, 0)]
    return torch.stack(ends, 1)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Pixels in each rectangle ``(B, 4)`` of :func:`rectangles`, bool ``(B, H, W)``."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]


def strips(boxes: Tensor, height: int, width: int) -> Tensor:
    """The largest strip of the image's full width or height that is free of each rectangle, int64 ``(B, 3)``.

    Of each: whether it runs across (1, full width: rows begin..end) or down (0, full height: columns), begin, end (excluded).
    Of equal areas the first of above, below, left, right. An image without any has begin = end.
    """
    top, bottom, left, right = boxes.unbind(1)
    begin = torch.stack([torch.zeros_like(top), bottom, torch.zeros_like(left), right], 1)
    end = torch.stack([top, torch.full_like(top, height), left, torch.full_like(left, width)], 1)
    area = (end - begin) * torch.tensor([width, width, height, height], device=boxes.device)
    best = area.argmax(1, keepdim=True)
    return torch.stack([(best < 2).long(), begin.gather(1, best), end.gather(1, best)], 1)[..., 0]


def continued(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """From where each pixel is taken if the strip of background, see :func:`strips`, is continued over the whole image.

    The strip itself stays where it is: row y is row begin + (y − begin) mod (end − begin) of the image, columns alike.

    Returns:
        Places y·W + x, int32 ``(B, H·W)``, and which images have no strip, bool ``(B,)``; the places of these mean nothing.
    """
    across, begin, end = strips(boxes, height, width).int()[:, :, None].unbind(1)
    period = (end - begin).clamp(min=1)
    y, x = (torch.arange(n, device=boxes.device, dtype=torch.int32) for n in (height, width))
    rows = torch.where(across > 0, begin + (y - begin) % period, y).clamp(max=height - 1)
    columns = torch.where(across > 0, x, begin + (x - begin) % period).clamp(max=width - 1)
    return (rows[:, :, None] * width + columns[:, None]).flatten(1), (end <= begin).flatten()


def taken(images: Tensor, places: Tensor, source: Tensor | None = None) -> Tensor:
    """Image b made of pixels ``places[b]``, ``(B, H·W)``, of image ``source[b]``, or its own.

    A few at a time: a processor's caches hold these, but not all of them.
    """
    new = torch.empty_like(images, memory_format=torch.contiguous_format)  # so that it can be written to as (B, C, H·W)
    for first in range(0, len(images), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        pixels = (images[part] if source is None else images[source[part]]).flatten(2)
        torch.gather(pixels, 2, places[part, None].long().expand(-1, images.shape[1], -1), out=new[part].flatten(2))
    return new


def tiled(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image ``(B, C, H, W)`` as the continuation of its own strip of background, see :func:`continued`.

    An image that has no strip, since the rectangle reaches all four borders, is grey, 0.5: nothing is known of its background.
    """
    places, without = continued(boxes, *images.shape[2:])
    new = taken(images, places)
    return new.masked_fill_(without[:, None, None, None], GREY) if without.any() else new


def coloured(colours: Tensor, noise: Tensor) -> Tensor:
    """One colour ``(B, C)`` for each image and channel, with noise ``(B, C, H, W)``, which is overwritten: colour + N(0, .2) in [0, 1]."""
    return noise.mul_(_SPREAD).add_(colours[:, :, None, None]).clamp_(0, 1)


def shuffled(images: Tensor, region: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with the pixels of its region, bool ``(B, H, W)``, in a random order; all channels of a pixel move together.

    One permutation after the other: these cost a tenth of sorting random keys for all images at once. Each is drawn from a
    seed of the image's own, so that none depends on how large another's region is.
    """
    seeds = torch.randint(2**62, (len(images),), generator=generator, device=generator.device).tolist()
    counts, stream = region.flatten(1).sum(1).tolist(), torch.Generator(generator.device)
    orders = [torch.randperm(n, generator=stream.manual_seed(seed), device=stream.device) for n, seed in zip(counts, seeds, strict=True)]
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0).tolist()
    order = torch.cat([one.add_(start) for one, start in zip(orders, starts, strict=True)]).to(images.device)
    places = torch.arange(region[0].numel(), device=images.device).repeat(len(images), 1)
    places.masked_scatter_(region.flatten(1), places[region.flatten(1)].index_select(0, order))
    return taken(images, places)

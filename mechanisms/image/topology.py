"""Topologies of hierarchical VAEs as short strings (Child 2021): ``8b2d2,4b2d4,1b1``."""

from __future__ import annotations

import re

from datasets.errors import UserError

Stages = list[tuple[int, int]]
_BLOCKS, _CHANNELS = 1000, 2**16


def parse_topology(text: str) -> Stages:
    """``"8b2d2,4b1"`` → ``[(8, 2), (4, 1)]``: resolution and number of blocks of each stage.

    Raises:
        UserError: for a malformed stage, a pooling that does not lead to the next stage, or sizes that do not divide.
    """
    stages: Stages = []
    pooled = None
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"([1-9]\d*)b([1-9]\d*)(?:d([1-9]\d*))?", part)
        if not match:
            raise UserError(f"topology {text!r}: {part!r} is not <resolution>b<blocks>[d<pooling>], for instance 8b2d2")
        resolution, blocks = int(match[1]), int(match[2])
        if pooled not in (None, resolution):
            raise UserError(f"topology {text!r}: pooling leads to resolution {pooled}, but the next stage says {resolution}")
        if stages and max(resolution, stages[-1][0]) % min(resolution, stages[-1][0]):
            raise UserError(f"topology {text!r}: {stages[-1][0]} and {resolution} do not divide")
        pooled = resolution // int(match[3]) if match[3] else None
        if blocks > _BLOCKS:
            raise UserError(f"topology {text!r}: {part!r} has more than {_BLOCKS} blocks")
        stages.append((resolution, blocks))
    return stages


def parse_widths(text: str, encoder: Stages, decoder: Stages, finest: int) -> dict[int, int]:
    """``"8:96,4:128"`` → ``{8: 96, 4: 128}``, checked against both topologies and the finest resolution.

    Raises:
        UserError: for a malformed entry, a resolution without a width or with two, or topologies that do not fit the image.
    """
    widths = {}
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+):([1-9]\d*)", part)
        if not match:
            raise UserError(f"widths {text!r}: {part!r} is not <resolution>:<channels>, for instance 8:96")
        resolution, width = int(match[1]), int(match[2])
        if width > _CHANNELS:
            raise UserError(f"widths {text!r}: {part!r} has more than {_CHANNELS} channels")
        if resolution in widths:
            raise UserError(f"widths {text!r} gives resolution {resolution} twice, {widths[resolution]} and {width} channels; drop one")
        widths[resolution] = width
    encoded, decoded = [r for r, _ in encoder], [r for r, _ in decoder]
    if encoded[0] != finest or decoded[-1] != finest:
        raise UserError(f"the encoder starts at {encoded[0]} and the decoder ends at {decoded[-1]}, but image size / patch is {finest}")
    if missing := [r for r in decoded if r not in encoded]:
        raise UserError(f"the decoder has latents at {missing}, where the encoder has no stage; it has {encoded}")
    if missing := [r for r in {*encoded, *decoded} if r not in widths]:
        raise UserError(f"widths {text!r} lacks resolution {missing}")
    return widths


def default_topology(finest: int) -> tuple[str, str, str]:
    """Encoder, decoder and widths for images that measure ``finest`` after folding, ``16`` for 32² pixels.

    Levels at middle resolutions (5 to 8), whose latents describe parts of a shape, are worth their time, see ``docs/design-notes.md``.
    """
    resolutions = [finest]
    while resolutions[-1] > 4 and resolutions[-1] % 2 == 0:
        resolutions.append(resolutions[-1] // 2)
    if resolutions[-1] > 1:
        resolutions.append(1)
    levels = {r: 3 if r == finest else 2 if 4 < r <= 8 else 1 for r in resolutions}
    blocks = {r: 2 if r == finest else 1 for r in resolutions}
    width = {r: 256 if r == 1 else 128 if r <= 4 else 96 if r <= 8 else 48 if r <= 16 else 32 for r in resolutions}
    encoder = ",".join(f"{r}b{blocks[r]}" for r in resolutions)
    decoder = ",".join(f"{r}b{levels[r]}" for r in reversed(resolutions))
    return encoder, decoder, ",".join(f"{r}:{width[r]}" for r in resolutions)

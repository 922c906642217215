"""Digits as shapes: rendering one at any thickness, measuring stroke thickness and intensity on any image.

The procedure is that of Morpho-MNIST (Castro et al., 2019, "Morpho-MNIST: quantitative assessment and diagnostics for
representation learning") as deep structural causal models use it (Pawlowski et al., 2020): upsample and binarise a
digit, measure its mean thickness t0, dilate (t > t0) or erode (t < t0) it by int(16·|t - t0|/2) sixteenths of a pixel,
downscale, and multiply so that the median of the bright pixels is the wanted intensity.

Everything that does not depend on the wanted thickness is computed once per digit. Resampling is linear, so it is two
small matrix products. A dilation by a structuring element with half-widths ``w[dy]`` is the union over its rows of
"the nearest stroke pixel of row y + dy is at most w[dy] columns away", one comparison of bytes per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from skimage.morphology import medial_axis
from threadpoolctl import ThreadpoolController
from torch import Tensor

EXACT_SCALE = 16  # the scale at which the data set was defined: radii are whole sixteenths of a pixel
FAST_SCALE = 8
_FAR = 255  # row distances are bytes; no radius that anyone asks for comes near
_TILES = 256  # times 1/scale: digits whose medial axes are found in one call; a call costs 12 ms however little it gets


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # finding them takes milliseconds, so once


def one_thread() -> AbstractContextManager:
    """Matrix products in one thread: ours are so small that threads waiting for each other cost 40 times more."""
    return _libraries().limit(limits=1, user_api="blas")


# ---------------------------------------------------------------------------------------------------- resampling
def _cubic(size: int, wanted: int) -> np.ndarray:
    """``(wanted, size)``: cubic convolution (Keys, 1981; a = -1/2), pixel centres aligned, edges mirrored."""
    position = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    matrix = np.zeros((wanted, size))
    for tap in range(-1, 3):
        source = np.floor(position).astype(int) + tap
        x = np.abs(position - source)
        weight = np.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        mirrored = source % (2 * size)
        np.add.at(matrix, (np.arange(wanted), np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)), weight)
    return matrix


@lru_cache(maxsize=16)
def _resampling(size: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: up ``(size·scale, size)`` and down ``(size, size·scale)``, each with its Gaussian of scale/3."""
    up = gaussian_filter1d(_cubic(size, size * scale), scale / 3, axis=0, mode="reflect")
    down = gaussian_filter1d(_cubic(size * scale, size), scale / 3, axis=1, mode="reflect")
    return up.astype(np.float32), down.astype(np.float32)


def binarise(image: np.ndarray, scale: int) -> np.ndarray:
    """``(H, W)`` grey values → ``(H·scale, W·scale)`` booleans: above half of the range; no contrast, no stroke."""
    rows, columns = (_resampling(size, scale)[0] for size in image.shape)
    large = rows @ image.astype(np.float32) @ columns.T
    low, high = float(large.min()), float(large.max())
    if high - low <= 1e-3 * abs(high):  # only rounding errors differ
        return np.zeros(large.shape, bool)
    return large > low + 0.5 * (high - low)


# ---------------------------------------------------------------------------------------------------- thickness
def mean_thickness(images: Sequence[np.ndarray], scale: int) -> np.ndarray:
    """Twice the mean distance to the background along the medial axis, in pixels of the image.

    Args:
        images: grey images of one shape ``(H, W)``.
        scale: upsampling before binarising.

    Returns:
        ``(B,)`` float64; 0 for an image without a stroke; what lies beyond the frame is background. The medial axis
        breaks ties at random (seeded), so a value depends a little (0.01 px) on the images that it is computed with.
    """
    thickness = np.zeros(len(images))
    count = _TILES // scale
    for start in range(0, len(images), count):
        tiles = [_framed(binarise(image, scale)) for image in images[start:start + count]]
        ends = np.cumsum([len(tile) for tile in tiles])
        column = np.zeros((ends[-1], max(tile.shape[1] for tile in tiles)), bool)
        for tile, end in zip(tiles, ends, strict=True):
            column[end - len(tile):end, :tile.shape[1]] = tile
        skeleton, distance = medial_axis(column, return_distance=True, rng=0)
        for k, (tile, end) in enumerate(zip(tiles, ends, strict=True)):
            ridge = distance[end - len(tile):end][skeleton[end - len(tile):end]]
            if ridge.size:
                thickness[start + k] = 2 * ridge.mean() / scale
    return thickness


def _framed(mask: np.ndarray) -> np.ndarray:
    """The stroke's bounding box with one pixel of background around it, so that in a column of tiles none touch."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] if rows.size else mask[:1, :1]
    return np.pad(box, 1)


@lru_cache(maxsize=256)
def half_widths(radius: int, step: int) -> tuple[int, ...]:
    """The structuring element of a radius in sixteenths: half-widths of its rows 0, 1, … in steps of ``step``.

    The official generator drew a disk at 16 times the radius and shrank it by 16 with smoothing; every cell with any
    weight left then counted. So its element is the disk grown by the reach of that smoothing (21 fine pixels
    along each axis), cut to the square of half-width ``radius``: a full square up to radius 5, a rounded one above.
    """
    cells = np.arange(0, radius + 1, step)
    fine = np.floor(cells * (32 * radius + 1) / (2 * radius + 1))
    reach = np.maximum(fine - 21, 0) ** 2
    inside = reach[:, None] + reach[None, :] <= (16 * radius) ** 2
    return tuple(int(n) - 1 for n in inside.sum(axis=1))


def _row_distance(mask: np.ndarray) -> np.ndarray:
    """uint8: columns from each pixel to the nearest true one in its own row, 255 where there is none."""
    column = np.arange(mask.shape[1], dtype=np.int16)
    left = np.maximum.accumulate(np.where(mask, column, np.int16(-1024)), axis=1)
    right = np.minimum.accumulate(np.where(mask, column, np.int16(2048))[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(np.minimum(column - left, right - column), _FAR).astype(np.uint8)


def _dilate(distance: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Union over the rows of the element; ``distance`` is :func:`_row_distance` of the mask."""
    grown = distance <= widths[0]
    for dy, width in enumerate(widths[1:], start=1):
        near = distance <= width
        grown[dy:] |= near[:-dy]
        grown[:-dy] |= near[dy:]
    return grown


# ---------------------------------------------------------------------------------------------------- rendering
class Shape:
    """One digit, binarised once, from which an image of any thickness is rendered.

    Args:
        image: grey digit ``(H, W)``.
        thickness: its own mean thickness (:func:`mean_thickness`), in pixels.
        scale: 16 as the data set is defined, or 8 (a quarter of the work).
    """

    def __init__(self, image: np.ndarray, thickness: float, scale: int) -> None:
        self.mask = binarise(image, scale)
        self.thickness = thickness
        self.scale = scale
        self._distances: dict[bool, np.ndarray] = {}

    def at(self, thickness: float) -> np.ndarray:
        """The stroke at another mean thickness: ``(H·scale, W·scale)`` float32, 1 inside."""
        radius = int(EXACT_SCALE * abs(thickness - self.thickness) / 2)
        grow = thickness > self.thickness
        if grow not in self._distances:
            self._distances[grow] = _row_distance(self.mask if grow else ~self.mask)
        step = EXACT_SCALE // self.scale
        # a radius between two whole steps lies half-way between the shapes of its neighbours
        radii = (radius,) if radius % step == 0 else (radius - 1, radius + 1)
        shapes = [_dilate(self._distances[grow], half_widths(r, step)) for r in radii]
        stroke = shapes[0].astype(np.float32) if len(shapes) == 1 else np.add(*shapes, dtype=np.float32) / 2
        return stroke if grow else 1 - stroke


def shrink(stroke: np.ndarray, scale: int) -> np.ndarray:
    """``(H·scale, W·scale)`` → ``(H, W)``, float32 in [0, 1]."""
    rows, columns = (_resampling(size // scale, scale)[1] for size in stroke.shape)
    return np.clip(rows @ stroke @ columns.T, 0, 1)


def with_intensity(image: np.ndarray, intensity: float) -> np.ndarray:
    """Multiplied so that the median of pixels above half of the range is ``intensity``; uint8, black stays black."""
    low, high = image.min(), image.max()
    if high <= 0:
        return np.zeros(image.shape, np.uint8)
    bright = np.median(image[image >= low + 0.5 * (high - low)])
    return np.clip(image * (intensity / bright), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- measuring
def measure_thickness(images: Tensor) -> Tensor:
    """Mean stroke thickness in pixels, ``(B,)``, of float images ``(B, 1, H, W)`` in [0, 1]; 0 for a black image.

    At scale 4, where against the sampled thickness of Morpho-MNIST the error is about 0.11 and the bias +0.08.
    """
    grey = images.detach().float().cpu().numpy()[:, 0]
    with one_thread():
        return torch.from_numpy(mean_thickness(grey, scale=4)).float().to(images.device)


def measure_intensity(images: Tensor) -> Tensor:
    """Median of the pixels of at least half the maximum, in 0..255, ``(B,)``; 0 for a black image.

    ``images`` are float ``(B, 1, H, W)`` in [0, 1]; on Morpho-MNIST the error against the label is about 0.5.
    """
    pixels = images.detach().float().flatten(1)
    bright = pixels >= pixels.amax(dim=1, keepdim=True) / 2
    return 255 * torch.nanquantile(torch.where(bright, pixels, torch.nan), 0.5, dim=1)

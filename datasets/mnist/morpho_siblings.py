"""Siblings of Morpho-MNIST: thickness causes the slant of a digit, or its width, instead of its intensity.

``slant = 20(t - 2.5) + u`` degrees; ``width = 10 + 15·σ(2(t - 2.5) + 2u)`` pixels; ``u ~ N(0, 1)``. Thickness and digit
are as in :mod:`datasets.mnist.morpho`. The stroke is rendered at thickness t, then sheared or stretched along its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from datasets.mnist.morpho import DIGIT, THICKNESS, GeneratedDigits
from datasets.mnist.morphology import Shape, binarise, one_thread, shrink
from datasets.registry import register
from datasets.schema import Variable

_STEEPEST = 85.0  # degrees; beyond it nothing of a digit is left in the frame, and a tangent would change its sign
_MEASURE_SCALE = 4


def _rows_from(stroke: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Row by row, the stroke at (rounded) source columns ``(H or 1, W)``; what comes from beyond the frame is empty."""
    source = np.rint(columns).astype(int)
    inside = (source >= 0) & (source < stroke.shape[1])
    source, inside = np.broadcast_arrays(np.where(inside, source, 0), inside)
    rows = np.arange(len(stroke))[:, None]
    return np.where(inside, stroke[rows, source], 0).astype(np.float32)


def slant_of(image: np.ndarray) -> float:
    """Slant in degrees, positive where the top leans to the right: from second moments of a grey image ``(H, W)``."""
    total = image.sum()
    if total <= 0:
        return 0.0
    y, x = np.arange(image.shape[0], dtype=float), np.arange(image.shape[1], dtype=float)
    y, x = y - (image.sum(1) @ y) / total, x - (image.sum(0) @ x) / total
    spread = image.sum(1) @ (y * y)
    return float(np.degrees(np.arctan(-(y @ image @ x) / spread))) if spread > 0 else 0.0


@register
@dataclass(eq=False)
class MorphoMNISTSlant(GeneratedDigits):
    """Thickness → slant, both and the digit → image. Options: see :class:`GeneratedDigits`."""

    name: ClassVar[str] = "morphomnist-slant"
    second: ClassVar[str] = "slant"
    true_images_under: ClassVar[tuple[str, ...]] = ("thickness", "slant")
    variables: ClassVar[tuple[Variable, ...]] = (
        THICKNESS, Variable("slant", "real", ("thickness",), unit="degrees"), DIGIT,
        Variable("image", "image", ("thickness", "slant", "digit"), shape=(1, 32, 32)))

    @staticmethod
    def mechanism(thickness: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return 20 * (thickness - 2.5) + noise

    @staticmethod
    def draw(shape: Shape, thickness: float, value: float) -> np.ndarray:
        """Sheared about the frame's centre, so that the slant, measured on the digit as a whole, is ``value``."""
        stroke = shape.at(thickness)
        shear = np.tan(np.radians(np.clip(value, -_STEEPEST, _STEEPEST))) - np.tan(np.radians(slant_of(stroke)))
        height, width = stroke.shape
        shift = shear * ((height - 1) / 2 - np.arange(height))  # to the right, growing towards the top
        return _as_bytes(shrink(_rows_from(stroke, np.arange(width) - shift[:, None]), shape.scale))

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``slant`` in degrees, ``(B,)``; 0 for a black image. Shearing changes thickness, so that is not measured."""
        grey = images.detach().double().cpu().numpy()[:, 0]
        return {"slant": torch.tensor([slant_of(image) for image in grey], dtype=torch.float32, device=images.device)}


@register
@dataclass(eq=False)
class MorphoMNISTWidth(GeneratedDigits):
    """Thickness → width, both and the digit → image; the noise has standard deviation 2 inside the sigmoid.

    The literature writes ``N(2(t - 2.5), 2)``; as for intensity, the second argument is read as a standard deviation.
    Options: see :class:`GeneratedDigits`.
    """

    name: ClassVar[str] = "morphomnist-width"
    second: ClassVar[str] = "width"
    true_images_under: ClassVar[tuple[str, ...]] = ("thickness", "width")
    variables: ClassVar[tuple[Variable, ...]] = (
        THICKNESS, Variable("width", "interval", ("thickness",), low=10, high=25, unit="px"), DIGIT,
        Variable("image", "image", ("thickness", "width", "digit"), shape=(1, 32, 32)))

    @staticmethod
    def mechanism(thickness: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return 10 + 15 * expit(2 * (thickness - 2.5) + 2 * noise)

    @staticmethod
    def draw(shape: Shape, thickness: float, value: float) -> np.ndarray:
        """The bounding box is stretched to ``value`` columns and put in the middle, where 25 fit into the frame."""
        stroke = shape.at(thickness)
        used = np.flatnonzero((stroke > 0).any(axis=0))
        if not used.size:
            return np.zeros([n // shape.scale for n in stroke.shape], np.uint8)
        middle, factor = (used[0] + used[-1]) / 2, (used[-1] - used[0] + 1) / (value * shape.scale)
        offset = np.arange(stroke.shape[1]) - (stroke.shape[1] - 1) / 2
        return _as_bytes(shrink(_rows_from(stroke, middle + factor * offset[None]), shape.scale))

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``width`` of the bounding box in pixels, ``(B,)``; 0 for a black image. Stretching changes thickness."""
        widths = []
        with one_thread():
            for image in images.detach().float().cpu().numpy()[:, 0]:
                used = np.flatnonzero(binarise(image, _MEASURE_SCALE).any(axis=0))
                widths.append((used[-1] - used[0] + 1) / _MEASURE_SCALE if used.size else 0.0)
        return {"width": torch.tensor(widths, dtype=torch.float32, device=images.device)}


def _as_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * image).astype(np.uint8)

"""Named transformations of images: the mechanisms that experts learn to invert.

A transformation is written ``name`` or ``name=strength``: ``right``, ``right=6``, ``noise=0.1``. Each is a function of the
image alone, the same for all images, except for ``noise``, whose noise is passed in so that a row keeps its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets import words
from datasets.errors import valid_are
from datasets.mnist.morphology import FAST_SCALE, Shape, one_thread, shrink
from datasets.schema import SchemaError

Function = Callable[[Tensor, float, Tensor], Tensor]  # images float (B, C, H, W), strength, noise (B, C, H, W) → images
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1),
              "upleft": (-1, -1), "upright": (-1, 1), "downleft": (1, -1), "downright": (1, 1)}


@dataclass(frozen=True)
class Kind:
    """A family of transformations: what it does at its usual strength, which strengths it takes, and what it loses."""

    function: Function
    usual: float
    low: float
    high: float
    unit: str
    loses: str


@dataclass(frozen=True)
class Transform:
    """One transformation, written as ``text``; ``loses`` says what no inverse can bring back, empty where nothing is lost."""

    text: str
    kind: Kind
    strength: float

    @property
    def loses(self) -> str:
        return self.kind.loses

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        """Float images in [0, 1] and standard normal noise, both ``(B, C, H, W)`` → images in [0, 1]."""
        return self.kind.function(images, self.strength, noise).clamp(0, 1)


def _shift(dy: int, dx: int) -> Function:
    def shift(images: Tensor, pixels: float, noise: Tensor) -> Tensor:
        """What enters is black."""
        n, (height, width) = int(pixels), images.shape[-2:]
        padded = F.pad(images, (n, n, n, n))
        top, left = n - dy * n, n - dx * n
        return padded[..., top:top + height, left:left + width]

    return shift


def _noise(images: Tensor, variance: float, noise: Tensor) -> Tensor:
    return images + math.sqrt(variance) * noise


def _invert(images: Tensor, share: float, noise: Tensor) -> Tensor:
    return share * (1 - images) + (1 - share) * images


def _affine(images: Tensor, degrees: float = 0.0, factor: float = 1.0) -> Tensor:
    """Turned anticlockwise by ``degrees`` and enlarged ``factor`` times about the centre, bilinear, black outside."""
    cos, sin = (f(math.radians(degrees)) / factor for f in (math.cos, math.sin))
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], device=images.device).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def _rotate(images: Tensor, degrees: float, noise: Tensor) -> Tensor:
    return _affine(images, degrees=degrees)


def _scale(images: Tensor, factor: float, noise: Tensor) -> Tensor:
    return _affine(images, factor=factor)


def _contrast(images: Tensor, factor: float, noise: Tensor) -> Tensor:
    return 0.5 + factor * (images - 0.5)


def _blur(images: Tensor, sigma: float, noise: Tensor) -> Tensor:
    reach = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=images.device).float().square() / (2 * sigma * sigma))
    weights = (weights / weights.sum()).view(1, 1, -1)
    flat = images.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0)), weights.unsqueeze(2))
    return F.conv2d(F.pad(flat, (0, 0, reach, reach)), weights.unsqueeze(3)).view_as(images)


def _thickness(images: Tensor, pixels: float, noise: Tensor) -> Tensor:
    """The stroke made thicker by dilation, or thinner by erosion, as Morpho-MNIST does; each channel for itself.

    A shape is rendered by how much thicker it is to become, so that its own thickness need not be measured.
    """
    planes = images.flatten(0, 1).cpu().numpy()
    own, wanted = max(0.0, -pixels), max(0.0, pixels)
    with one_thread():
        drawn = [plane.max() * shrink(Shape(plane, own, FAST_SCALE).at(wanted), FAST_SCALE) for plane in planes]
    return torch.from_numpy(np.stack(drawn).astype(np.float32)).view_as(images).to(images.device)


KINDS: dict[str, Kind] = {
    **{name: Kind(_shift(*by), 4, 1, 16, "pixels", "what leaves the frame") for name, by in DIRECTIONS.items()},
    "noise": Kind(_noise, 0.25, 0.0, 4.0, "variance", "detail under the noise, and what is clipped at black and white"),
    "invert": Kind(_invert, 1.0, 0.6, 1.0, "share", ""),
    "rotate": Kind(_rotate, 30.0, -180.0, 180.0, "degrees", "corners, and a little sharpness"),
    "scale": Kind(_scale, 0.65, 0.25, 2.0, "factor", "detail where it shrinks"),
    "contrast": Kind(_contrast, 0.4, 0.1, 1.0, "factor", ""),
    "blur": Kind(_blur, 1.5, 0.3, 5.0, "pixels", "sharpness below its width"),
    "thickness": Kind(_thickness, 2.0, -3.0, 6.0, "pixels", "detail of the outline; where it thins, thin strokes"),
}
TEN = (*DIRECTIONS, "noise", "invert")  # the ten mechanisms of Parascandolo et al. 2018, section 5


def parse(listed: str, where: str = "--transforms") -> tuple[Transform, ...]:
    """``right,down,invert`` or ``rotate=45,noise=.1`` → transformations; ``ten`` stands for the ten of the paper.

    Raises:
        SchemaError: for none at all, an unknown name (the valid ones are listed), a strength out of range, or a repetition,
            in other words too: ``right`` is ``right=4``.
    """
    parts = words.listed(listed, where, error=SchemaError)
    named = [name for part in parts for name in (TEN if part == "ten" else (part,))]
    if not named:
        raise SchemaError(f"{where} {listed!r} names no transformation; give at least one of {', '.join(KINDS)}, or ten")
    found: list[Transform] = []
    for word in named:
        name, given, value = (piece.strip() for piece in word.partition("="))
        if name not in KINDS:
            raise SchemaError(f"{where} names the unknown transformation {name!r}; {valid_are((*KINDS, 'ten'), name)}")
        kind = KINDS[name]
        try:
            strength = float(value) if given else kind.usual
        except ValueError:
            raise SchemaError(f"{where}: the strength of {word!r} is no number") from None
        whole = name in DIRECTIONS and strength != int(strength) if math.isfinite(strength) else True
        if whole or not kind.low <= strength <= kind.high:
            raise SchemaError(f"{where}: {word!r} must lie between {kind.low:g} and {kind.high:g} {kind.unit}"
                              + (", in whole pixels" if name in DIRECTIONS else ""))
        text = word.replace(" ", "")
        if same := [other.text for other in found if (other.kind, other.strength) == (kind, strength)]:
            raise SchemaError(f"{where} names {text} twice{'' if same == [text] else f': {same[0]} is the same'}; leave one out")
        found.append(Transform(text, kind, strength))
    return tuple(found)

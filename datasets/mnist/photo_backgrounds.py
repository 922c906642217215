"""Photo backgrounds: a digit on a piece of one of two photographs, which goes with the digit's class or does not.

Class 0 are the digits 0–4, class 1 are 5–9. With probability s the background is the class's own photograph, ``background =
label``, else the other one: a small network sees a background's colours long before it can tell digits. Foreground and
background are known to the pixel, so that masks, and images with another background, are exact. The same cue in the wild:
Waterbirds (Sagawa et al. 2020, *Distributionally robust neural networks for group shifts*, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.base import Shift
from datasets.mnist.digits import DIGIT, PaintedDigits, random_halves
from datasets.ranges import Share
from datasets.registry import register
from datasets.schema import SchemaError, Variable

PHOTOS = ("china", "flower")  # 427×640 each, as scikit-learn ships them
SIZES = (32, 64)
BAND = 64  # columns; of every five bands of a photograph three are for training, one for validation, one for the test
_BANDS = {"train": range(0, 3), "valid": range(3, 4), "test": range(4, 5)}
_PERIOD = 5
_INK = 32  # of 255: a fainter pixel of a digit is no stroke
_LEVELS = 32  # of each colour channel, when a background is recognised by its colours
_EDGE, _GREY = 2, 0.03  # only pixels this near the border tell of it, unless their channels are this close: digit and halo are grey
_BACKGROUND = Variable("background", "binary", ("label",), classes=PHOTOS)
_IMAGE = Variable("image", "image", ("digit", "background"), shape=(3, 32, 32))


@cache
def photographs() -> Tensor:
    """The two photographs that scikit-learn ships, uint8 ``(2, 3, 427, 640)``, in the order of ``PHOTOS``."""
    from sklearn.datasets import load_sample_image

    return torch.stack([torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1) for name in PHOTOS])


@register
@dataclass(eq=False)
class PhotoBackgrounds(PaintedDigits):
    """digit → label → background; digit, background → image, RGB.

    A row's noise is where its digit stands and where in either photograph its patch is, so that ``do(background)`` moves
    nothing but what is behind the digit. The photographs are cut into bands of 64 columns, and a band belongs to one split
    only: no pixel of a background is in two splits. The digit is light with a dark halo of one pixel (at 32×32; in
    proportion at 64×64), which hides the background behind it entirely; outside :meth:`masks` an image is the photograph,
    bit for bit.

    Args:
        strength: probability s that the background is that of the class, on average over the two environments; at .5 they
            are independent.
        gap: s − ½ is (strength − ½)·(1 + gap) in the first environment and (strength − ½)·(1 − gap) in the second.
        size: of the image, 32 or 64 pixels.

    The other options are those of :class:`datasets.mnist.digits.DigitSplits`.
    """

    name: ClassVar[str] = "photo-backgrounds"
    label: ClassVar[str] = "label"
    spurious: ClassVar[tuple[str, ...]] = ("background",)
    true_images_under: ClassVar[tuple[str, ...]] = ("label", "background")
    variables: ClassVar[tuple[Variable, ...]] = (
        DIGIT, Variable("label", "binary", ("digit",), classes=("0-4", "5-9")), _BACKGROUND, _IMAGE)
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"*": {"network": "smallcnn", "epochs": 10.0}}

    strength: Share[float] = 0.95
    gap: Share[float] = 0.1
    size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.strength - 0.5) * (1 + self.gap) > 0.5:
            raise SchemaError(f"{self.title}: gap={self.gap} must lie in [0, 1] and leave |strength − ½|·(1 + gap) at most ½, "
                              f"with strength={self.strength}")
        if self.size not in SIZES:
            raise SchemaError(f"{self.title}: size={self.size} must be {' or '.join(map(str, SIZES))}")
        background = replace(_BACKGROUND, parents=()) if self.strength == 0.5 else _BACKGROUND
        self.variables = (*type(self).variables[:2], background, replace(_IMAGE, shape=(3, self.size, self.size)))

    def noise(self, split: str, digit: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """``tied``: whether the background is the class's own; ``top``, ``left`` ``(N, 2)`` of the patch in each photograph;
        ``at`` ``(N, 2)``, row and column of the digit."""
        sign = np.where(self.environments(split).numpy() == 0, 1 + self.gap, 1 - self.gap)
        tied = random.random(len(digit)) < 0.5 + (self.strength - 0.5) * sign
        photos = photographs()
        top = random.integers(photos.shape[2] - self.size + 1, size=(len(digit), 2))
        left = random.choice(self.columns(split), size=(len(digit), 2))
        at = random.integers(self.size - self._side + 1, size=(len(digit), 2))
        return {"tied": torch.from_numpy(tied), "top": torch.from_numpy(top), "left": torch.from_numpy(left), "at": torch.from_numpy(at)}

    def columns(self, split: str) -> np.ndarray:
        """First columns of all patches that lie within the split's bands."""
        width = photographs().shape[3]
        mine = np.isin(np.arange(width) // BAND % _PERIOD, _BANDS[split])
        inside = np.convolve(mine, np.ones(self.size, dtype=int), mode="valid")  # how many of a patch's columns are the split's
        return np.flatnonzero(inside == self.size)

    def attributes(self, digit: Tensor, noise: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        label = do.get("label", (digit >= 5).long())
        cause = torch.zeros_like(label) if self.strength == 0.5 else label  # at .5 nothing causes the background
        return {"digit": digit, "label": label, "background": do.get("background", torch.where(noise["tied"], cause, 1 - cause))}

    def paint(self, digits: Tensor, values: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        ink = self._placed(digits, noise["at"])
        patch = self.patches(values["background"], noise)
        return torch.where(self._around(ink).unsqueeze(1), ink.unsqueeze(1), patch)

    def patches(self, background: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """What is behind the digits, uint8 ``(B, 3, H, W)``."""
        rows = torch.arange(len(background))
        windows = photographs().unfold(2, self.size, 1).unfold(3, self.size, 1)  # (2, 3, top, left, H, W), none of it copied
        return windows[background, :, noise["top"][rows, background], noise["left"][rows, background]]

    def masks(self, split: str) -> Tensor:
        """Strokes and halo of the digit, exactly: what of an image is not photograph."""
        digits, _, noise = self._rows[split]
        return self._around(self._placed(digits, noise["at"]))

    @property
    def _side(self) -> int:
        """Of the drawn digit, in pixels."""
        return 28 * self.size // 32

    def _placed(self, digits: Tensor, at: Tensor) -> Tensor:
        """Digits scaled and set where they stand, uint8 ``(B, H, W)``."""
        scaled = F.interpolate(digits.unsqueeze(1).float(), size=(self._side,) * 2, mode="bilinear").round().to(torch.uint8)[:, 0]
        room = self.size - self._side
        windows = F.pad(scaled, (room,) * 4).unfold(1, self.size, 1).unfold(2, self.size, 1)
        return windows[torch.arange(len(digits)), room - at[:, 0], room - at[:, 1]]

    def _around(self, ink: Tensor) -> Tensor:
        """Strokes with their halo, bool ``(B, H, W)``."""
        radius = self.size // 32
        return F.max_pool2d((ink >= _INK).float().unsqueeze(1), 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``background``: the photograph in which the colours of the image's edge are likelier, int64 ``(B,)``.

        Right for 97 to 100 % of images at 32×32, by split: some dark or grey pieces have no colour to go by.
        """
        counted = images.amax(1) - images.amin(1) >= _GREY
        counted[:, _EDGE:-_EDGE, _EDGE:-_EDGE] = False
        return {"background": (self._colours.to(images.device)[:, _binned(images)] * counted).flatten(2).sum(-1).argmax(0)}

    @cached_property
    def _colours(self) -> Tensor:
        """log probability of each colour in each photograph, ``(2, levels³)``; one count is added to each."""
        bins = _binned(photographs().float() / 255).flatten(1)
        counts = torch.stack([row.bincount(minlength=_LEVELS**3) for row in bins]) + 1.0
        return (counts / counts.sum(1, keepdim=True)).log()

    def environments(self, split: str) -> Tensor:
        return random_halves(len(self._digits[split][0]))

    def shifts(self) -> Mapping[str, Shift]:
        """``independent``: either photograph, whatever the class; ``reversed``: the other class's own."""
        def independent(attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {"background": torch.randint(2, attributes["label"].shape, generator=generator)}

        return {"independent": independent, "reversed": lambda attributes, generator: {"background": 1 - attributes["label"]}}


def _binned(images: Tensor) -> Tensor:
    """The number of each pixel's colour, ``(B, C, H, W)`` in [0, 1] → int64 ``(B, H, W)``."""
    red, green, blue = (images * _LEVELS).long().clamp(0, _LEVELS - 1).unbind(1)
    return (red * _LEVELS + green) * _LEVELS + blue

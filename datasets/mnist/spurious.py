"""Spurious MNIST: a small coloured square in a corner marks one of two classes of digits, and all but gives it away.

Class 0 are the digits 0–4, class 1 are 5–9; the square is on all but a share ``mix`` of class 0, and on a share ``mix``
of class 1 (Asgari et al. 2022, *MaskTune: mitigating spurious correlations by forcing to explore*, section 4.1). Tested
``raw``, without any square, and ``malicious``, with the square on class 1 and on that alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.base import Shift
from datasets.errors import valid_are
from datasets.files.idx import Digits
from datasets.mnist.digits import DIGIT, PaintedDigits, rows
from datasets.ranges import Share, within
from datasets.registry import register
from datasets.schema import SchemaError, Variable

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255),
           "magenta": (255, 0, 255), "white": (255, 255, 255)}
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
LARGEST = 14  # pixels; half of the image
Square = within(1, LARGEST)
_FAINT = 64  # of 255: a colour whose strongest channel is below this cannot be told from the background


@register
@dataclass(eq=False)
class SpuriousMNIST(PaintedDigits):
    """digit → label → square; digit, square → image.

    All of MNIST's training part is for training; of its test part even rows are for validation, odd ones for the test.
    The square's noise is the row's rank in a random order of its class, so that shares hold exactly: of all of MNIST, at
    1 %, 600 of 60,000 images are in the wrong state.

    Args:
        square_size: side of the square in pixels, 1 to 14.
        colour: of the square, a name or ``#rrggbb``.
        corner: of the image where the square is.
        mix: share of each class that is marked like the other one, exactly (rounded to whole images).

    The other options are those of :class:`datasets.mnist.digits.DigitSplits`.
    """

    name: ClassVar[str] = "spuriousmnist"
    label: ClassVar[str] = "label"
    spurious: ClassVar[tuple[str, ...]] = ("square",)
    true_images_under: ClassVar[tuple[str, ...]] = ("label", "square")
    variables: ClassVar[tuple[Variable, ...]] = (
        DIGIT, Variable("label", "binary", ("digit",), classes=("0-4", "5-9")),
        Variable("square", "binary", ("label",), classes=("absent", "present")),
        Variable("image", "image", ("digit", "square"), shape=(3, 28, 28)))
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "*": {"network": "smallcnn", "optimizer": "sgd", "learning_rate": 0.01, "beta1": 0.9, "weight_decay": 1e-4, "batch_size": 128,
              "schedule": "constant", "warmup": 0, "ema": 0.0, "clip": 1e9, "skip": 1e9}}

    square_size: Square[int] = 4
    colour: str = "blue"
    corner: str = "top-left"
    mix: Share[float] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corner not in CORNERS:
            raise SchemaError(f"{self.title}: unknown corner {self.corner!r}; {valid_are(CORNERS, self.corner)}")
        self._rgb = torch.tensor(_rgb(self.colour, self.title), dtype=torch.uint8)

    def parts(self, source: Mapping[str, Digits]) -> dict[str, Digits]:
        """The training part, and even and odd rows of the test part."""
        return {"train": source["train"], "valid": rows(source["test"], slice(0, None, 2)), "test": rows(source["test"], slice(1, None, 2))}

    def noise(self, split: str, digit: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """``(rank + ½)/n`` of each row in a random order of the n rows of its class, float64."""
        label, rank = (digit >= 5).numpy(), np.empty(len(digit))
        for members in (np.flatnonzero(~label), np.flatnonzero(label)):
            rank[random.permutation(members)] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
        return {"square": torch.from_numpy(rank)}

    def attributes(self, digit: Tensor, noise: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        label = do.get("label", (digit >= 5).long())
        share = torch.tensor([1 - self.mix, self.mix], dtype=torch.float64)[label]
        return {"digit": digit, "label": label, "square": do.get("square", (noise["square"] < share).long())}

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the square."""
        first, last = slice(0, self.square_size), slice(28 - self.square_size, 28)
        return last if self.corner.startswith("bottom") else first, last if self.corner.endswith("right") else first

    def paint(self, digits: Tensor, values: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        image = digits.unsqueeze(1).repeat(1, 3, 1, 1)
        marked = values["square"].nonzero().flatten()
        image[(marked, slice(None), *self.place)] = self._rgb.view(1, 3, 1, 1)
        return image

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``square``: the corner is nearer to the square's colour than to black, int64 ``(B,)``."""
        patch = images[(slice(None), slice(None), *self.place)]
        colour = self._rgb.to(images).view(1, 3, 1, 1) / 255
        return {"square": ((patch - colour).abs().mean((1, 2, 3)) < patch.abs().mean((1, 2, 3))).long()}

    def shifts(self) -> Mapping[str, Shift]:
        """``raw``: no square; ``malicious``: the square on class 1 and on that alone."""
        return {"raw": lambda attributes, generator: {"square": torch.zeros_like(attributes["label"])},
                "malicious": lambda attributes, generator: {"square": attributes["label"].clone()}}


def _rgb(colour: str, title: str) -> tuple[int, int, int]:
    if re.fullmatch("#[0-9a-fA-F]{6}", colour):
        rgb = tuple(bytes.fromhex(colour[1:]))
        if max(rgb) < _FAINT:
            raise SchemaError(f"{title}: colour {colour} is hardly to be seen on black; one of its channels must be at least {_FAINT:#x}")
        return rgb
    if colour not in COLOURS:
        raise SchemaError(f"{title}: unknown colour {colour!r}; {valid_are(COLOURS, colour)}, or #rrggbb")
    return COLOURS[colour]

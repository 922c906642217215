"""A page of images in rows and columns, with figures under each: how the pictures of the metrics are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from dscm.figures.style import DIFFERENCE, DPI, INK, PALE, as_change, as_pixels, page

_MARGIN, _LINE, _CHARACTER = 0.14, 0.125, 0.059  # inches: around all, from one line of text to the next, of a letter
_SIZE = 7  # of text


@dataclass(frozen=True)
class Cell:
    """An image ``(C, H, W)`` in [0, 1], or a difference of two that ends at ±``reach``, with lines of text under it."""

    image: Tensor | None = None
    lines: Sequence[str] = ()
    reach: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of cells, and what is said to its left."""

    label: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Sheet:
    """Rows of cells under headings.

    Attributes:
        title: over all.
        headings: one for each column; may have several lines.
        rows: from top to bottom.
        side: inches that an image is about as wide as.
        apart: columns before which a little more room is left.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Line]
    side: float = 1.05
    apart: Sequence[int] = ()

    def figure(self) -> Figure:
        """The page; every pixel of an image is as wide as its neighbour."""
        shape = next(cell.image.shape for row in self.rows for cell in row.cells if cell.image is not None)
        scale = max(1, round(self.side * DPI / shape[-1]))
        side, tall = scale * shape[-1] / DPI, scale * shape[-2] / DPI
        texts = [text for row in self.rows for cell in row.cells for text in cell.lines]
        pitch = max(side + 0.1, 0.08 + _CHARACTER * _longest([*self.headings, *texts]))
        start = _MARGIN + 0.12 + _CHARACTER * _longest([row.label for row in self.rows])
        centres = [start + (k + 0.5) * pitch + 0.15 * sum(a <= k for a in self.apart) for k in range(len(self.headings))]
        over = 0.34 + _LINE * (1 + max(heading.count("\n") for heading in self.headings)) * any(self.headings)
        heights = [(tall if any(c.image is not None for c in row.cells) else 0.0) + _LINE * max(len(c.lines) for c in row.cells) + 0.12
                   for row in self.rows]
        width = max(centres[-1] + pitch / 2, _CHARACTER * 1.15 * len(self.title)) + _MARGIN
        height = over + sum(heights)
        figure = page(width, height)

        def say(text: str, x: float, y: float, **given: Any) -> None:
            figure.text(x / width, 1 - y / height, text, fontsize=_SIZE, **{"ha": "center", "va": "top", "color": INK, **given})

        say(self.title, _MARGIN, 0.08, ha="left", weight="bold")
        for centre, heading in zip(centres, self.headings, strict=True):
            for k, text in enumerate(reversed(heading.split("\n"))):
                say(text, centre, over - 0.06 - k * _LINE, va="baseline", color=PALE)
        for row, y in zip(self.rows, (over + sum(heights[:k]) for k in range(len(heights))), strict=True):
            deep = tall if any(cell.image is not None for cell in row.cells) else 0.0
            say(row.label, _MARGIN, y + deep / 2 if deep else y + 0.02, ha="left", va="center" if deep else "top", linespacing=1.25)
            for centre, cell in zip(centres, row.cells, strict=True):
                if cell.image is not None:
                    left, top = round((centre - side / 2) * DPI) / DPI, round(y * DPI) / DPI
                    axes = figure.add_axes((left / width, 1 - (top + tall) / height, side / width, tall / height))
                    axes.set_axis_off()
                    pixels = as_pixels(cell.image) if cell.reach is None else as_change(cell.image, cell.reach)
                    style = {"cmap": "gray", "vmin": 0} if cell.reach is None else {"cmap": DIFFERENCE, "vmin": -1}
                    axes.imshow(pixels, aspect="auto", interpolation="nearest", **({} if pixels.ndim == 3 else {**style, "vmax": 1}))
                for k, text in enumerate(cell.lines):
                    say(text, centre, y + deep + 0.02 + k * _LINE)
        return figure


def _longest(texts: Sequence[str]) -> int:
    """Letters of the longest line."""
    return max((len(line) for text in texts for line in text.split("\n")), default=0)

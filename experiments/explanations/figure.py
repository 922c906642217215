"""The picture of ``experiments.explain``: images in rows, heat maps of several networks beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from dscm.figures.style import DIFFERENCE, DPI, INK, ORANGE, PALE, as_pixels, page

HEAT = "inferno"  # perceptually uniform, and dark where there is no evidence
EDGE = "#35d0e8"  # of the foreground; not among the heat's colours
_SHARE = 0.65  # of the heat in a pixel; the rest is the image, in grey
_MARGIN, _LINE, _CHARACTER, _SIZE = 0.16, 0.125, 0.059, 7  # inches: around all, from line to line, of a letter; points


@dataclass(frozen=True)
class Panel:
    """One column: what is shown of each image.

    Attributes:
        heading: over the column.
        images: ``(B, C, H, W)``, float in [0, 1].
        lines: of text under each image.
        heat: ``(B, H, W)`` in [0, 1], or in [-1, 1] of a figure of signed ones, laid over the image.
        outline: bool ``(B, H, W)``, a region whose edge is drawn.
        wrong: bool ``(B,)``, images whose text is orange.
        foreground: bool ``(B, H, W)``, another region, whose edge has a colour of its own.
    """

    heading: str
    images: Tensor
    lines: Sequence[Sequence[str]]
    heat: Tensor | None = None
    outline: Tensor | None = None
    wrong: Tensor | None = None
    foreground: Tensor | None = None


def explanation_figure(panels: Sequence[Panel], title: str = "", notes: Sequence[str] = (), side: float = 1.1,
                       scale: str = "evidence for the predicted class, in each image", signed: bool = False) -> Figure:
    """A page with a row for each image and a column for each panel, and a scale of the heat.

    Args:
        panels: all about the same B images.
        notes: lines under the picture.
        side: inches that an image is about as wide as; every pixel is as wide as its neighbour.
        scale: what the heat is.
        signed: whether what is negative speaks against it, and is blue.
    """
    count, _, height, width = panels[0].images.shape
    zoom = max(1, round(side * DPI / width))
    wide, tall = zoom * width / DPI, zoom * height / DPI
    words = [[*panel.heading.split("\n"), *(text for lines in panel.lines for text in lines)] for panel in panels]
    pitches = [max(wide, _CHARACTER * max(map(len, texts))) + 0.14 for texts in words]
    lefts = [_MARGIN + sum(pitches[:k]) + (pitches[k] - wide) / 2 for k in range(len(panels))]
    deepest = max(len(lines) for panel in panels for lines in panel.lines)
    group = tall + _LINE * deepest + 0.14
    above = 0.1 + 0.2 * bool(title) + _LINE * max(panel.heading.count("\n") + 1 for panel in panels)
    below = 0.1 + 0.5 * any(panel.heat is not None for panel in panels) + _LINE * len(notes)
    across = max(sum(pitches), _CHARACTER * 1.15 * len(title), *(0.9 * _CHARACTER * len(note) for note in notes), 2.0) + 2 * _MARGIN
    figure = page(across, above + group * count + below)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_axis_off()
    canvas.set(xlim=(0, across), ylim=(figure.get_figheight(), 0))
    canvas.set_autoscale_on(False)

    def say(text: str, x: float, y: float, **given: Any) -> None:
        canvas.text(x, y, text, **{"fontsize": _SIZE, "color": INK, "ha": "center", "va": "top", **given})

    if title:
        say(title, _MARGIN, 0.08, weight="bold", ha="left")
    for panel, left in zip(panels, lefts, strict=True):
        for k, text in enumerate(reversed(panel.heading.split("\n"))):
            say(text, left + wide / 2, above - 0.06 - k * _LINE, va="baseline", color=INK if k else PALE)
        for row in range(count):
            x, y = round(left * DPI) / DPI, round((above + row * group) * DPI) / DPI
            pixels = as_pixels(panel.images[row]) if panel.heat is None else heated(panel.images[row], panel.heat[row], signed)
            grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if pixels.ndim == 2 else {}
            canvas.imshow(pixels.clamp(0, 1), extent=(x, x + wide, y + tall, y), aspect="auto", interpolation="nearest", **grey)
            for region, color, thick in ((panel.foreground, EDGE, 0.7), (panel.outline, ORANGE, 1.0)):
                if region is not None:
                    edges = outline(region[row]) * torch.tensor([wide / width, tall / height]) + torch.tensor([x, y])
                    canvas.add_collection(LineCollection(edges.tolist(), colors=color, linewidths=thick, capstyle="projecting"))
            color = ORANGE if panel.wrong is not None and panel.wrong[row] else INK
            for k, text in enumerate(panel.lines[row]):
                say(text, x + wide / 2, y + tall + 0.03 + k * _LINE, color=color if k == 0 else PALE)
    end = above + group * count
    if any(panel.heat is not None for panel in panels):
        _scale(figure, _MARGIN, end + 0.18, scale, signed)
        end += 0.5
    for k, note in enumerate(notes):
        say(note, _MARGIN, end + 0.02 + k * _LINE, ha="left", fontsize=0.9 * _SIZE, color=PALE)
    return figure


def heated(image: Tensor, heat: Tensor, signed: bool = False) -> Tensor:
    """An image ``(C, H, W)`` in grey with heat ``(H, W)`` in [0, 1], or signed in [-1, 1], laid over it, ``(H, W, 3)``."""
    grey = image.amax(0).double()  # a mean would darken pure colours
    shade = ((heat.double() + 1) / 2 if signed else heat.double()).clamp(0, 1)
    colors = torch.as_tensor(matplotlib.colormaps[DIFFERENCE if signed else HEAT](shade.numpy()))[..., :3]
    return (1 - _SHARE) * grey[..., None] + _SHARE * colors


def outline(region: Tensor) -> Tensor:
    """The edges of a region of pixels, bool ``(H, W)``, as segments ``(S, 2, 2)`` of (x, y) in pixels."""
    padded = torch.nn.functional.pad(region.int(), (1, 1, 1, 1))
    down, right = (padded[1:] != padded[:-1])[:, 1:-1].nonzero(), (padded[:, 1:] != padded[:, :-1])[1:-1].nonzero()
    across = torch.stack([down.flip(1), down.flip(1) + torch.tensor([1, 0])], 1)  # under row y, from x to x + 1
    along = torch.stack([right.flip(1), right.flip(1) + torch.tensor([0, 1])], 1)
    return torch.cat([across, along]).float()


def _scale(figure: Figure, left: float, top: float, title: str, signed: bool) -> None:
    """The colours of the heat, in inches from the top left corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, 1 - (top + 0.07) / height, min(1.5, width - 2 * left) / width, 0.07 / height))
    colors = ScalarMappable(Normalize(-1, 1), DIFFERENCE) if signed else ScalarMappable(Normalize(0, 1), HEAT)
    bar = figure.colorbar(colors, cax=axes, orientation="horizontal")
    bar.set_ticks([colors.norm.vmin, 1], labels=["most against", "most for"] if signed else ["none", "most"])
    for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
    bar.ax.tick_params(labelsize=6, length=0, pad=2, colors=INK)
    bar.outline.set_visible(False)
    axes.set_title(title, fontsize=6, color=PALE, loc="left", pad=2)


def prediction_lines(probabilities: Tensor, classes: Sequence[str]) -> list[list[str]]:
    """``predicts three, 98 %`` for each row of ``(B, K)``."""
    return [[f"predicts {classes[int(row.argmax())]}, {math.floor(100 * float(row.max()))} %"] for row in probabilities]

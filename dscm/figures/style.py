"""What all figures share: colours, a page, how values are written, and where a figure is saved."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from datasets.schema import Variable
from mechanisms.runs.files import RunError, replacing
from mechanisms.runs.pages import Page

INK, PALE, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f6fb4", "#d9730d"
DIFFERENCE = "RdBu_r"
DPI = 150


def written(variable: Variable, value: Tensor | float, unit: bool = False) -> str:
    """A value in as many digits as its spread in training asks for, or the name of a class."""
    if variable.discrete:
        return variable.classes[int(value)]
    digits = min(4, max(0, 1 - math.floor(math.log10(variable.statistics.std))))
    return f"{float(value):.{digits}f}".replace("-", "−") + (f" {variable.unit}" if unit and variable.unit else "")


def as_pixels(image: Tensor) -> Tensor:
    """``(C, H, W)`` → ``(H, W, 3)`` of a colour image, ``(H, W)`` of any other."""
    if len(image) == 2:
        image = torch.cat([image, torch.zeros_like(image[:1])])
    return image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)


def as_change(difference: Tensor, reach: float) -> Tensor:
    """A difference ``(C, H, W)`` that ends at ±reach: colours about grey ``(H, W, 3)``, or ``(H, W)`` in [-1, 1]."""
    if len(difference) in (2, 3):
        return (as_pixels(difference) / reach + 1) / 2
    return difference.gather(0, difference.abs().argmax(0, keepdim=True))[0] / reach


def colour_bar(figure: Figure, left: float, bottom: float, cmap: str, low: float, high: float, label: str) -> None:
    """A small horizontal colour bar; ``left`` and ``bottom`` in inches."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, 1.5 / width, 0.07 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=axes, orientation="horizontal")
    ticks = [low, 0, high] if low < 0 else [0, high]
    bar.set_ticks(ticks, labels=[f"{t:+.0f}".replace("-", "−") if t else "0" for t in ticks])
    bar.ax.tick_params(labelsize=6, length=0, pad=2, colors=INK)
    bar.outline.set_visible(False)
    axes.set_title(label, fontsize=6, color=PALE, loc="left", pad=2)


def page(width: float, height: float) -> Figure:
    """An empty white figure, in inches, made without pyplot."""
    figure = Page(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Small ticks, and two of the four spines."""
    axes.tick_params(labelsize=7, length=2, color=PALE, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")


def check_format(path: Path) -> None:
    """Raises RunError for a file whose ending names no image format that can be written."""
    known = FigureCanvasAgg(Figure()).get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise RunError(f"cannot write {path}: the ending {path.suffix or '(none)'} is no image format; known are {', '.join(known)}")
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder")


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write a figure whole or not at all, in the format that the ending of ``path`` names.

    Raises:
        RunError: for an unknown format, or a place that cannot be written; an earlier file is kept.
    """
    check_format(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=dpi)
    return path


def heading(label: str) -> str:
    """A command line's spelling as a heading: ``thickness+=-1`` → ``thickness − 1``."""
    spaced = re.sub(r"\s*(\+=|=|~)\s*", r" \1 ", label.strip(), count=1)
    return spaced.replace(" += -", " − ").replace(" += ", " + ").replace("= -", "= −")

"""Figures: counterfactual images beside the truth, attributes as observed and as sampled, training curves.

Every function returns a matplotlib ``Figure`` made without pyplot, so that none leaves global state behind and all work
where there is no display. :func:`save_figure` writes one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from datasets.schema import Graph, Variable
from dscm.metrics.truth import image_error
from dscm.model import Counterfactual
from mechanisms.checkpoint import RunError, replacing

Values = Mapping[str, Tensor]
Row = Mapping[str, Any]  # one line of metrics.jsonl

INK, PALE, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f6fb4", "#d9730d"
DIFFERENCE, SPREAD = "RdBu_r", "Purples"
DPI = 150
_LINE = 0.115  # inches from one line of small text to the next


@dataclass(frozen=True)
class Column:
    """One intervention on all observed images: what it is called, its answers, and the true ones where they are known."""

    label: str
    answer: Counterfactual
    truth: Values | None = None


# -------------------------------------------------------------------------------------------------------- words
def heading(label: str) -> str:
    """A command line's spelling as a heading: ``thickness+=-1`` → ``thickness − 1``."""
    spaced = re.sub(r"\s*(\+=|=|~)\s*", r" \1 ", label.strip(), count=1)
    return spaced.replace(" += -", " − ").replace(" += ", " + ").replace("= -", "= −")


def written(variable: Variable, value: Tensor | float, unit: bool = False) -> str:
    """A value in as many digits as its spread in training asks for, or the name of a class."""
    if variable.discrete:
        return variable.classes[int(value)]
    digits = min(4, max(0, 1 - math.floor(math.log10(variable.statistics.std))))
    return f"{float(value):.{digits}f}".replace("-", "−") + (f" {variable.unit}" if unit and variable.unit else "")


# -------------------------------------------------------------------------------------------------------- images
def counterfactual_grid(observed: Values, columns: Sequence[Column], graph: Graph, title: str = "") -> Figure:
    """Rows: observed images. Columns: interventions. Below each answer its difference to the observed image, the
    posterior's spread where there are draws, and the truth where it is known.

    Args:
        observed: attributes ``(B,)`` and ``image``, float in [0, 1], ``(B, C, H, W)``. Two or three channels are shown
            as red, green, blue, and so is their difference, grey being none: a mean over channels would hide a change of
            hue. Of four or more channels the mean is shown, and the difference in the channel that changes most.
        columns: at least one. Values that were set are blue, what follows from them is grey, and what lies beyond the
            training data is orange.
    """
    observed = {name: value.cpu() for name, value in observed.items()}
    columns = [Column(heading(c.label), _on_cpu(c.answer), c.truth and {n: v.cpu() for n, v in c.truth.items()}) for c in columns]
    images = observed["image"]
    colour = images.shape[1] in (2, 3)
    style = {} if colour else {"cmap": "gray", "vmin": 0, "vmax": 1}
    differences = [(c.answer.image - images) * 255 for c in columns]
    spreads = [c.answer.spread.mean(1) * 255 if c.answer.draws is not None and len(c.answer.draws) > 1 else None for c in columns]
    some_truth, some_spread = any(c.truth is not None for c in columns), any(s is not None for s in spreads)
    reach = max(1.0, *(float(d.abs().max()) for d in differences))
    widest = max(1.0, *(float(s.max()) for s in spreads if s is not None)) if some_spread else 1.0

    facts = [[_facts(graph, observed, column, row) for column in columns] for row in range(len(images))]
    own = [[(f"{v.name} {written(v, observed[v.name][row], unit=True)}", INK) for v in graph.attributes] for row in range(len(images))]
    lines = max((len(f) for row in facts for f in row), default=0)
    longest = max(len(text) for row in [*own, *(sum(r, []) for r in facts)] for text, _ in row)
    # a cell is as wide as the longest line of text, and every pixel of the image as wide as its neighbour
    wanted = max(0.8, min(1.6, images.shape[-1] / 100), 0.049 * longest, *(0.053 * len(c.label) for c in columns))
    side, tall = (n * math.ceil(wanted * DPI / images.shape[-1]) / DPI for n in (images.shape[-1], images.shape[-2]))
    gap, strip, margin = 0.08, 0.2, 0.16
    below = 0.05 + _LINE * lines  # under the answers
    group = tall + below + (tall + gap) * (1 + some_spread) + (tall + _LINE + 0.04) * some_truth + 0.22
    group = max(group, tall + 0.05 + _LINE * len(graph.attributes) + 0.22)
    top, bottom = 0.42 + (0.28 if title else 0.0), 0.62
    some_beyond = any(flags.any() for c in columns for flags in c.answer.beyond.values())
    width = max(2 * margin + side + strip + len(columns) * (side + gap), 2.4 + 2.1 * some_spread + 1.8 * some_beyond)
    figure, canvas = _canvas(width, top + group * len(images) + bottom)

    def show(pixels: Tensor, left: float, y: float, **given: Any) -> None:
        left, y = round(left * DPI) / DPI, round(y * DPI) / DPI
        canvas.imshow(pixels, extent=(left, left + side, y + tall, y), aspect="auto", interpolation="nearest", **given)

    def say(text: str, x: float, y: float, size: float = 6.5, color: str = INK, **given: Any) -> None:
        canvas.text(x, y, text, fontsize=size, color=color, **{"ha": "center", "va": "top", **given})

    lefts = [margin + side + strip + gap / 2 + k * (side + gap) for k in range(len(columns))]
    if title:
        say(title, margin, 0.14, size=9, weight="bold", ha="left")
    say("observed", margin + side / 2, top - 0.08, size=7, va="bottom", color=PALE)
    for left, column in zip(lefts, columns, strict=True):
        say(column.label, left + side / 2, top - 0.08, size=6.5, weight="bold", va="bottom")
    for row in range(len(images)):
        y = top + row * group
        if row:
            canvas.plot((margin, width - margin), (y - 0.11, y - 0.11), color="#e3e3e3", linewidth=0.6)
        show(as_pixels(images[row]), margin, y, **style)
        for k, (text, color) in enumerate(own[row]):
            say(text, margin + side / 2, y + tall + 0.05 + k * _LINE, color=color)
        parts = ["counterfactual", "difference", *["spread"] * some_spread, *["truth"] * some_truth]
        starts = [y, *(y + tall + below + k * (tall + gap) for k in range(len(parts) - 1))]
        for part, start in zip(parts, starts, strict=True):
            say(part, margin + side + strip / 2 + 0.02, start + tall / 2, size=6, color=PALE, rotation=90, va="center")
        for left, column, difference, spread, told in zip(lefts, columns, differences, spreads, facts[row], strict=True):
            show(as_pixels(column.answer.image[row]), left, starts[0], **style)
            for k, (text, color) in enumerate(told):
                say(text, left + side / 2, starts[0] + tall + 0.05 + k * _LINE, color=color)
            show(as_change(difference[row], reach), left, starts[1], **({} if colour else {"cmap": DIFFERENCE, "vmin": -1, "vmax": 1}))
            if spread is not None:
                show(spread[row], left, starts[2], cmap=SPREAD, vmin=0, vmax=widest)
            if column.truth is not None:
                show(as_pixels(column.truth["image"][row]), left, starts[-1], **style)
                error = image_error(column.answer.image[row:row + 1], column.truth["image"][row:row + 1])
                say(f"L1 {float(error):.1f}", left + side / 2, starts[-1] + tall + 0.04, color=PALE)
    _bar(figure, margin + 0.12, 0.36, "gray" if colour else DIFFERENCE, -reach, reach,
         "difference in each channel, of 255" if colour else "difference to the observed image, of 255")
    if some_spread:
        _bar(figure, margin + 2.2, 0.36, SPREAD, 0, widest, "standard deviation over draws, of 255")
    if some_beyond:
        say("orange: beyond the training data", width - margin, figure.get_figheight() - 0.2, color=ORANGE, ha="right", va="bottom")
    return figure


def _on_cpu(answer: Counterfactual) -> Counterfactual:
    return Counterfactual({n: v.cpu() for n, v in answer.attributes.items()}, answer.image.cpu(),
                          {n: v.cpu() for n, v in answer.beyond.items()}, None if answer.draws is None else answer.draws.cpu(),
                          answer.attribute_draws and {n: v.cpu() for n, v in answer.attribute_draws.items()})


def _facts(graph: Graph, observed: Values, column: Column, row: int) -> list[tuple[str, str]]:
    """Lines of text under one answer, each with its colour: the values that were set and those that followed."""
    lines = []
    for variable in graph.attributes:
        value = column.answer.attributes[variable.name][row]
        if variable.name in column.answer.beyond:
            color = ORANGE if column.answer.beyond[variable.name][row] else BLUE
        elif value != observed[variable.name][row]:
            color = PALE
        else:
            continue
        lines.append((f"{variable.name} {written(variable, value)}", color))
    return lines


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


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white page and axes over all of it, in inches from the top left corner: one object instead of one per image."""
    figure = page(width, height)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_axis_off()
    canvas.set(xlim=(0, width), ylim=(height, 0))
    canvas.set_autoscale_on(False)
    return figure, canvas


def _bar(figure: Figure, left: float, bottom: float, cmap: str, low: float, high: float, label: str) -> None:
    """A small horizontal colour bar; ``left`` and ``bottom`` in inches."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, 1.5 / width, 0.07 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=axes, orientation="horizontal")
    ticks = [low, 0, high] if low < 0 else [0, high]
    bar.set_ticks(ticks, labels=[f"{t:+.0f}".replace("-", "−") if t else "0" for t in ticks])
    bar.ax.tick_params(labelsize=6, length=0, pad=2, colors=INK)
    bar.outline.set_visible(False)
    axes.set_title(label, fontsize=6, color=PALE, loc="left", pad=2)


# -------------------------------------------------------------------------------------------------------- attributes
def attribute_figure(observed: Values, sampled: Values, graph: Graph, intervened: tuple[str, Values] | None = None) -> Figure:
    """Attributes as observed and as the model samples them: each marginal, and each cause against its effect.

    Args:
        observed, sampled: ``{name: (N,)}`` in physical units; the two may differ in N.
        intervened: the label of an intervention and samples under it.
    """
    worlds = [("observed", PALE, observed), ("model", BLUE, sampled)]
    if intervened is not None:
        worlds.append((heading(intervened[0]), ORANGE, intervened[1]))
    worlds = [(label, color, {n: v.detach().cpu() for n, v in values.items()}) for label, color, values in worlds]
    names = [(v,) for v in graph.attributes]
    edges = [(p, v) for v in graph.attributes for p in graph.parents(v.name)]
    panels = [*names, *edges]
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    figure = page(2.5 * across, 2.1 * down + 0.3)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        tidy(axes)
        (_marginal if len(panel) == 1 else _edge)(axes, *panel, worlds)
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    handles = [figure.axes[0].plot([], [], color=color, linewidth=3)[0] for _, color, _ in worlds]
    figure.legend(handles, [label for label, _, _ in worlds], loc="upper left", ncols=len(worlds), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


World = tuple[str, str, dict[str, Tensor]]


def _marginal(axes: Axes, variable: Variable, worlds: Sequence[World]) -> None:
    """Shares of classes as bars, densities as histograms over common bins; a value held by ``do`` as a line."""
    values = [(color, world[variable.name].double()) for _, color, world in worlds]
    if variable.discrete:
        places = torch.arange(variable.cardinality)
        for k, (color, value) in enumerate(values):
            share = torch.bincount(value.long(), minlength=variable.cardinality) / len(value)
            axes.bar(places + (k - (len(values) - 1) / 2) * 0.8 / len(values), share, 0.8 / len(values), color=color)
        axes.set_xticks(places, variable.classes)
    else:
        free = torch.cat([v for _, v in values if v.min() < v.max()])
        edges = torch.linspace(float(free.min()), float(free.max()), 41).numpy()
        for k, (color, value) in enumerate(values):
            if value.min() == value.max():
                axes.axvline(float(value[0]), color=color, linewidth=1.5)
            elif k == 0:
                axes.hist(value, edges, density=True, color=color, alpha=0.45)
            else:
                axes.hist(value, edges, density=True, color=color, histtype="step", linewidth=1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(_named(variable), fontsize=8)


def _edge(axes: Axes, cause: Variable, effect: Variable, worlds: Sequence[World], shown: int = 1500) -> None:
    """One cause against its effect; classes are jittered so that they do not hide each other."""
    jitter = torch.Generator().manual_seed(0)
    for _, color, world in worlds:
        points = []
        for variable in (cause, effect):
            value = world[variable.name][:shown].double()
            points.append(value + 0.5 * torch.rand(len(value), generator=jitter) - 0.25 if variable.discrete else value)
        axes.scatter(*points, s=3, color=color, alpha=0.35, linewidths=0, rasterized=True)
    axes.set_xlabel(_named(cause), fontsize=8)
    axes.set_ylabel(_named(effect), fontsize=8)


def _named(variable: Variable) -> str:
    return f"{variable.name} ({variable.unit})" if variable.unit else variable.name


# -------------------------------------------------------------------------------------------------------- training
def training_curves(metrics_rows: Sequence[Row], title: str = "") -> Figure:
    """Every term of a training in its own panel: training means in grey, validation in blue.

    Args:
        metrics_rows: of ``metrics.jsonl``, see :class:`mechanisms.checkpoint.MetricsLog`; at least one.
    """
    terms = list(metrics_rows[-1]["valid"])
    if len(terms) > 1 and any(all(row["valid"][t] == row["valid"]["loss"] for row in metrics_rows) for t in terms if t != "loss"):
        terms.remove("loss")  # nothing but another of the terms
    figure = page(2.5 * len(terms), 2.3)
    steps = [row["step"] for row in metrics_rows]
    for axes, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        tidy(axes)
        train, valid = ([row[part].get(term, math.nan) for row in metrics_rows] for part in ("train", "valid"))
        axes.plot(steps, train, color=PALE, linewidth=1.2, label="train")
        axes.plot(steps, valid, color=BLUE, linewidth=1.5, marker="o", markersize=2.5, label="valid")
        axes.set_title(term.replace("_", " "), fontsize=8, loc="left", color=INK)
        axes.set_xlabel("step", fontsize=8)
        # the first training mean covers the untrained model and would flatten all the rest
        seen = [v for v in (*valid, *train[1:]) if math.isfinite(v)]
        room = 0.05 * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - room, max(seen) + room)
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title or f"{steps[-1]} steps, {metrics_rows[-1]['seconds']:.0f} s", fontsize=9, x=0.01, ha="left", color=INK)
    figure.tight_layout(rect=(0, 0, 1, 1.04))
    return figure


# -------------------------------------------------------------------------------------------------------- pages
def page(width: float, height: float) -> Figure:
    """An empty white figure, in inches, made without pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
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

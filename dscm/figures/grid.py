"""Figures: counterfactual images beside the truth, attributes as observed and as sampled, training curves.

Every function returns a matplotlib ``Figure`` made without pyplot, so that none leaves global state behind and all work
where there is no display. :func:`save_figure` writes one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from datasets.schema import Graph
from dscm.figures.style import BLUE, DIFFERENCE, DPI, INK, ORANGE, PALE, as_change, as_pixels, colour_bar, heading, page, written
from dscm.metrics.truth import image_error
from dscm.results import Counterfactual

Values = Mapping[str, Tensor]

SPREAD = "Purples"
_LINE = 0.115  # inches from one line of small text to the next


@dataclass(frozen=True)
class Column:
    """One intervention on all observed images: what it is called, its answers, and the true ones where they are known."""

    label: str
    answer: Counterfactual
    truth: Values | None = None


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
    observed_lines = [[(f"{v.name} {written(v, observed[v.name][row], unit=True)}", INK) for v in graph.attributes]
                      for row in range(len(images))]
    lines = max((len(f) for row in facts for f in row), default=0)
    longest = max(len(text) for row in [*observed_lines, *(sum(r, []) for r in facts)] for text, _ in row)
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
        for k, (text, color) in enumerate(observed_lines[row]):
            say(text, margin + side / 2, y + tall + 0.05 + k * _LINE, color=color)
        parts = ["counterfactual", "difference", *["spread"] * some_spread, *["truth"] * some_truth]
        starts = [y, *(y + tall + below + k * (tall + gap) for k in range(len(parts) - 1))]
        for part, start in zip(parts, starts, strict=True):
            say(part, margin + side + strip / 2 + 0.02, start + tall / 2, size=6, color=PALE, rotation=90, va="center")
        for left, column, difference, spread, lines_below in zip(lefts, columns, differences, spreads, facts[row], strict=True):
            show(as_pixels(column.answer.image[row]), left, starts[0], **style)
            for k, (text, color) in enumerate(lines_below):
                say(text, left + side / 2, starts[0] + tall + 0.05 + k * _LINE, color=color)
            show(as_change(difference[row], reach), left, starts[1], **({} if colour else {"cmap": DIFFERENCE, "vmin": -1, "vmax": 1}))
            if spread is not None:
                show(spread[row], left, starts[2], cmap=SPREAD, vmin=0, vmax=widest)
            if column.truth is not None:
                show(as_pixels(column.truth["image"][row]), left, starts[-1], **style)
                error = image_error(column.answer.image[row:row + 1], column.truth["image"][row:row + 1])
                say(f"L1 {float(error):.1f}", left + side / 2, starts[-1] + tall + 0.04, color=PALE)
    colour_bar(figure, margin + 0.12, 0.36, "gray" if colour else DIFFERENCE, -reach, reach,
         "difference in each channel, of 255" if colour else "difference to the observed image, of 255")
    if some_spread:
        colour_bar(figure, margin + 2.2, 0.36, SPREAD, 0, widest, "standard deviation over draws, of 255")
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


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white page and axes over all of it, in inches from the top left corner: one object instead of one per image."""
    figure = page(width, height)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_axis_off()
    canvas.set(xlim=(0, width), ylim=(height, 0))
    canvas.set_autoscale_on(False)
    return figure, canvas

"""The figure of a stress test: a panel for each column of the table, algorithms below each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dscm.figures.style import BLUE, INK, ORANGE, PALE, page, tidy
from experiments.stress.column import Column
from experiments.stress.run import MAJORITY, MODEL, OBSERVED, TRUTH
from mechanisms.runs.tables import mean_over

_ACROSS, _WIDE, _ROW = 5, 1.9, 0.19  # panels in a row, at most; inches of each; inches of an algorithm
_STYLE = {TRUTH: (BLUE, "o", "accuracy in percent on true images, mean ± standard error and each seed"),
          MODEL: (ORANGE, "D", "on the model's images"),
          OBSERVED: (BLUE, "o", "percent on the images as observed, mean ± standard error and each seed")}


def robustness_figure(columns: Mapping[str, Sequence[Column]], names: Sequence[str]) -> Figure:
    """The columns in percent, mean and standard error, each seed a pale dot; the majority baseline is a dashed line.

    Args:
        columns: source of the images → columns of its table.
        names: algorithms from top to bottom.
    """
    shown = [n for n in names if n != MAJORITY]
    every = [column for of_source in columns.values() for column in of_source]
    titles = list(dict.fromkeys(c.title for c in every))
    down = max(1, math.ceil(len(titles) / _ACROSS))
    across = max(1, math.ceil(len(titles) / down))
    left, tall = 0.25 + 0.075 * max(map(len, shown), default=0), 0.12 + _ROW * len(shown)
    width, height = max(left + across * _WIDE + 0.1, 9.0), 0.4 + down * (tall + 0.62)
    figure = page(width, height)
    percents = [100 * v for c in every for n in shown for v in c.values.get(n, {}).values()] or [0.0, 100.0]
    room = max(2.0, 0.06 * (max(percents) - min(percents)))
    low, high = max(-1.0, min(percents) - room), min(102.5, max(percents) + room)
    for k, title in enumerate(titles):
        top = 0.4 + (k // across) * (tall + 0.62) + 0.24
        axes = figure.add_axes(((left + k % across * _WIDE) / width, 1 - (top + tall) / height, (_WIDE - 0.2) / width, tall / height))
        by_source = [(source, c) for source, of_source in columns.items() for c in of_source if c.title == title]
        _panel(axes, title, by_source, shown, k % across == 0, len(columns) > 1)
        axes.set_xlim(low, high)
    handles = [Line2D([], [], color=_STYLE[s][0], marker=_STYLE[s][1], markersize=4, linewidth=1, label=_STYLE[s][2]) for s in columns]
    baseline = [100 * v for c in every for v in c.values.get(MAJORITY, {}).values() if v]
    beyond = f", {baseline[0]:.0f} (not shown)" if baseline and not any(low < value < high for value in baseline) else ""
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label=f"majority class{beyond}"))
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), frameon=False, fontsize=7.5)
    return figure


def _panel(axes: Axes, title: str, columns: Sequence[tuple[str, Column]], shown: Sequence[str], first: bool, both: bool) -> None:
    tidy(axes)
    axes.set_title(title, fontsize=8, loc="left", color=INK)
    for source, column in columns:
        color, marker, _ = _STYLE[source]
        aside = 0.0 if not both or len(columns) == 1 else (-0.17 if source == TRUTH else 0.17)
        for place, name in enumerate(shown):
            if name in column.values:
                values = [100 * v for v in column.values[name].values()]
                mean, error = mean_over(values)
                axes.plot(values, [place + aside] * len(values), linestyle="", marker=".", markersize=3, color=color, alpha=0.35)
                axes.errorbar(mean, place + aside, xerr=error or 0.0, color=color, marker=marker, markersize=3.6, linewidth=1)
        for value in column.values.get(MAJORITY, {}).values():
            if value:  # in its worst group it is always 0
                axes.axvline(100 * value, color=INK, linestyle="--", linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(shown)), shown if first else [""] * len(shown))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", color=PALE, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)

"""The figure of a comparison: one small plot a quantity, methods below each other, bounds and floors as lines.

:func:`curve_figure` shows several budgets instead: each quantity against training time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dscm.figures.style import BLUE, INK, ORANGE, PALE, page, tidy
from experiments.comparison.aggregate import Aggregate

Plot = tuple[str, str, Mapping[str, Aggregate]]  # heading of its table, title, method → row
LINES = {"truth": ("the truth", INK, "-"), "identity": ("copying x", PALE, "--"), "real": ("real images", PALE, ":"),
         "ideal": ("ideal", INK, "-.")}
_ACROSS, _WIDE = 4, 2.35  # plots in a row, and inches of each
_FAR = 1.0  # a line farther from the methods than this many times their own spread is told in words, not drawn


def comparison_figure(plots: Sequence[Plot], names: Sequence[str], bounds: Sequence[str] = ()) -> Figure:
    """A plot for each column of the tables: mean and standard error of each method, each seed as a pale dot.

    Args:
        names: methods from top to bottom, those among ``bounds`` as orange lines instead.
    """
    shown, lined = [n for n in names if n not in bounds], [n for n in names if n in bounds]
    left, tall = 0.25 + 0.075 * max(map(len, shown), default=0), 0.14 + 0.16 * max(1, len(shown))
    figure, placed = _pages(plots, left, tall)
    for axes, first, (_, title, rows) in placed:
        _methods(axes, title, rows, shown, lined, first)
    handles = [Line2D([], [], color=BLUE, marker="o", markersize=4, linewidth=1, label="mean ± standard error, and each seed")]
    handles += [Line2D([], [], color=ORANGE, linewidth=1.2, label=name) for name in lined]
    _legend(figure, handles)
    return figure


def curve_figure(plots: Sequence[Plot], names: Sequence[str]) -> Figure:
    """Each quantity against the training's minutes, one line a method.

    Args:
        names: methods with their budgets, ``hvae, 3 min``.
    """
    lines: dict[str, dict[float, str]] = {}
    for name in names:
        method, _, budget = name.partition(", ")
        lines.setdefault(method, {})[float(budget.split()[0])] = name
    colours = dict(zip(lines, (BLUE, ORANGE, "#3a8f3a", "#8a3aa0", "#b03a3a", "#3aa0a0", "#a08a3a"), strict=False))
    figure, placed = _pages(plots, 0.5, 1.1)
    for axes, _, (_, title, rows) in placed:
        for method, budgets in lines.items():
            reached = [(minutes, rows[name]) for minutes, name in sorted(budgets.items()) if name in rows]
            axes.errorbar([m for m, _ in reached], [row.mean for _, row in reached], yerr=[row.error or 0.0 for _, row in reached],
                          color=colours[method], marker="o", markersize=3, linewidth=1.2)
        points = [row.mean for row in rows.values() if math.isfinite(row.mean)]
        beyond = _floor_lines(axes.axhline, rows, [], points)
        axes.set_xscale("log")
        ticks = sorted({minutes for budgets in lines.values() for minutes in budgets})
        axes.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
        axes.set_xticks([], minor=True)
        _finish(axes, title, beyond)
    handles = [Line2D([], [], color=colours[c], marker="o", markersize=4, linewidth=1.2, label=f"{c}, against minutes") for c in lines]
    _legend(figure, handles)
    return figure


def _pages(plots: Sequence[Plot], left: float, tall: float) -> tuple[Figure, list[tuple[Axes, bool, Plot]]]:
    """A page with a heading for each table, and axes for each plot, with whether they are the first in their row; inches."""
    blocks = {heading: [p for p in plots if p[0] == heading] for heading in dict.fromkeys(p[0] for p in plots)}
    row, across = tall + 0.56, left + _ACROSS * _WIDE + 0.1
    height = 0.3 + sum(0.34 + row * math.ceil(len(part) / _ACROSS) for part in blocks.values())
    figure, y, placed = page(across, height), 0.3, []
    for heading, part in blocks.items():
        figure.text(0.01, 1 - (y + 0.2) / height, heading, fontsize=8.5, weight="bold", color=INK, va="center")
        y += 0.34
        for k, plot in enumerate(part):
            top = y + (k // _ACROSS) * row + 0.22
            box = ((left + (k % _ACROSS) * _WIDE) / across, 1 - (top + tall) / height, (_WIDE - 0.35) / across, tall / height)
            placed.append((figure.add_axes(box), k % _ACROSS == 0, plot))
        y += row * math.ceil(len(part) / _ACROSS)
    return figure, placed


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    handles += [Line2D([], [], color=color, linestyle=style, linewidth=1, label=word) for word, color, style in LINES.values()]
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), frameon=False, fontsize=7.5)


def _methods(axes: Axes, title: str, rows: Mapping[str, Aggregate], shown: Sequence[str], lined: Sequence[str], first: bool) -> None:
    for place, name in enumerate(shown):
        if name in rows and math.isfinite(rows[name].mean):
            row = rows[name]
            axes.plot(list(row.values.values()), [place] * len(row.values), ".", color=BLUE, alpha=0.35, markersize=4, linewidth=0)
            axes.errorbar(row.mean, place, xerr=row.error, fmt="o", color=BLUE, markersize=3.5, linewidth=1)
    points = [v for name in shown if name in rows for v in (*rows[name].values.values(), rows[name].mean) if math.isfinite(v)]
    beyond = _floor_lines(axes.axvline, rows, lined, points)
    axes.set(yticks=range(len(shown)), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticklabels(shown if first else [], fontsize=7)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", useOffset=False)
    _finish(axes, title, beyond)


def _floor_lines(draw: Callable[..., Line2D], rows: Mapping[str, Aggregate], lined: Sequence[str], points: Sequence[float]) -> list[str]:
    """Lines for bounds and floors near the ``points``; those that would press the points together, in words."""
    lines = [(rows[name].mean, name, ORANGE, "-") for name in lined if name in rows]
    floors = {name: value for row in rows.values() for name, value in row.floors.items()}
    lines += [(floors[name], *LINES[name]) for name in LINES if name in floors]
    points = [*points, *(floors[name] for name in ("truth", "ideal") if floors.get(name) == 0 or name == "ideal" and name in floors)]
    low, high = (min(points), max(points)) if points else (0.0, 1.0)
    reach, beyond = _FAR * max(high - low, 0.05 * max(abs(low), abs(high)), 1e-6), []
    for value, word, color, style in lines:
        if low - reach <= value <= high + reach:
            draw(value, color=color, linestyle=style, linewidth=1.1, zorder=0)
        elif math.isfinite(value):
            beyond.append(f"{word} {value:.3g}")
    return beyond


def _finish(axes: Axes, title: str, beyond: Sequence[str]) -> None:
    tidy(axes)
    axes.set_title(title, fontsize=7.5, loc="left", color=INK, pad=3)
    if beyond:
        axes.set_xlabel("beyond: " + ", ".join(beyond), fontsize=5.5, loc="right", color=PALE, labelpad=1)

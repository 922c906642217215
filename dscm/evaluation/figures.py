"""Figures of an evaluation: each metric between its floors, drift over repeated interventions, calibration of the draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dscm.evaluation.table import figure as in_figures
from dscm.evaluation.table import unit
from dscm.figures.style import BLUE, INK, ORANGE, PALE, page, tidy
from dscm.metrics.registry import metrics
from dscm.metrics.score import Score

COLORS = (BLUE, ORANGE, "#3d8b4f", "#8659a8", "#a8324a", INK)
_REACH = (-0.3, 1.3)
_APART = 3  # standard errors that the two floors must lie apart, or there is no scale between them


def figures_of(scores: Sequence[Score]) -> dict[str, Figure]:
    """``{short name: figure}`` of all that there are scores for."""
    figures = {"floors": floors_figure(scores), "cycles": cycles_figure(scores), "calibration": calibration_figure(scores)}
    return {name: figure for name, figure in figures.items() if figure is not None}


# -------------------------------------------------------------------------------------------------------- floors
def floors_figure(scores: Iterable[Score]) -> Figure | None:
    """Every metric of every question on one scale: 0 as for the true image (or real ones), 1 as for copying x."""
    placed: dict[str, list[tuple[Score, float, float]]] = {}
    short = {name: metric.short for name, metric in metrics().items()}
    for score in scores:
        if short.get(score.metric) and (place := position(score)) is not None:
            placed.setdefault(score.intervention, []).append((score, *place))
    if not placed:
        return None
    counts = [len(rows) for rows in placed.values()]
    page_height = 0.21 * sum(counts) + 0.42 * len(counts) + 0.75
    canvas = page(7.4, page_height)
    panels = canvas.subplots(len(placed), 1, sharex=True, squeeze=False, height_ratios=[n + 1 for n in counts])[:, 0]
    for axes, (name, rows) in zip(panels, placed.items(), strict=True):
        _floors_panel(axes, name, rows, [short[s.metric].format(variable=s.variable) for s, _, _ in rows])
    panels[-1].set_xticks([0, 0.5, 1], ["as the true (or real) image", "half way", "as copying x"])
    panels[-1].tick_params(axis="x", labelbottom=True, labelsize=8)
    canvas.tight_layout(h_pad=0.6)
    return canvas


def position(score: Score) -> tuple[float, float] | None:
    """Where a figure lies between its floors, and its standard error there; None where these do not differ clearly."""
    good = score.floors.get("truth", score.floors.get("real"))
    bad = score.floors.get("identity")
    if good is None or bad is None or good in (float("inf"), float("-inf")):
        return None
    width = bad - good
    worse = width if score.better == "lower" else -width
    if not worse > _APART * (score.error or abs(score.value) / 100):
        return None
    return (score.value - good) / width, (score.error or 0.0) / abs(width)


def _floors_panel(axes: Axes, name: str, rows: Sequence[tuple[Score, float, float]], labels: Sequence[str]) -> None:
    tidy(axes)
    axes.set_title(name, fontsize=9, loc="left", color=INK, weight="bold")
    for place in (0, 1):
        axes.axvline(place, color="#bbbbbb", linewidth=0.8, zorder=0)
    for k, (score, place, error) in enumerate(rows):
        inside = min(max(place, _REACH[0]), _REACH[1])
        axes.plot((0, inside), (k, k), color=BLUE, linewidth=1, alpha=0.35)
        axes.errorbar(inside, k, xerr=error if inside == place else 0, color=BLUE, linewidth=1,
                      marker="o" if inside == place else (">" if place > 0 else "<"), markersize=4)
        axes.text(1.02, k, f"{in_figures(score)} {unit(score)}", transform=axes.get_yaxis_transform(), fontsize=7, va="center", color=INK)
    axes.set_yticks(range(len(rows)), labels)
    axes.set(xlim=_REACH, ylim=(len(rows) - 0.4, -0.6))


# -------------------------------------------------------------------------------------------------------- cycles
def cycles_figure(scores: Iterable[Score]) -> Figure | None:
    """L1 to x after 1, 2, 10 null interventions, and after steps there and back, one curve for each residual temperature."""
    panels: dict[str, dict[float | None, list[tuple[float, Score]]]] = {}
    cycled = [s for s in scores if s.metric in ("composition_l1", "reversibility_l1")]
    border = max((s.settings["border"] for s in cycled), default=0)
    for score in sorted(cycled, key=lambda s: s.metric):
        if score.settings["border"] == border:
            title = "regenerated" if score.metric == "composition_l1" else f"{score.intervention} and back"
            number = score.settings.get("cycles", score.settings.get("steps"))
            panels.setdefault(title, {}).setdefault(score.settings.get("temperature"), []).append((number, score))
    if not panels:
        return None
    canvas = page(2.3 * len(panels) + 0.4, 2.5)
    for axes, (title, curves) in zip(canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        tidy(axes)
        for color, (temperature, points) in zip(COLORS, curves.items(), strict=False):
            at, repeated = zip(*points, strict=True)
            axes.errorbar(at, [s.value for s in repeated], [s.error or 0 for s in repeated], color=color, marker="o", markersize=3,
                          linewidth=1.3, label=None if temperature is None else f"temperature {temperature:g}")
            axes.set_xticks(sorted({*at}))
        axes.set_title(title, fontsize=8, loc="left", color=INK)
        axes.set_xlabel("cycles" if title == "regenerated" else "steps", fontsize=8)
        top = max(s.value + (s.error or 0) for curves in panels.values() for points in curves.values() for _, s in points)
    canvas.axes[0].set_ylim(0, 1.05 * top or 1)
    canvas.axes[0].set_ylabel("L1 to x, of 255", fontsize=8)
    if canvas.axes[0].get_legend_handles_labels()[1]:
        canvas.axes[0].legend(frameon=False, fontsize=7)
    canvas.tight_layout()
    return canvas


# -------------------------------------------------------------------------------------------------------- calibration
def calibration_figure(scores: Iterable[Score]) -> Figure | None:
    """How often the truth lies in the draws' intervals, against how often it should, one panel for each question."""
    panels: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        if score.metric in ("coverage_changed_pixel", "coverage_attribute"):
            name = f"{score.variable}, measured" if score.variable else "pixels that change"
            panels.setdefault(score.intervention, {}).setdefault(name, []).append(score)
    if not panels:
        return None
    canvas = page(2.7 * len(panels) + 0.3, 2.9)
    for axes, (title, curves) in zip(canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        tidy(axes)
        right = next(iter(curves.values()))
        axes.plot([0, *(s.settings["level"] for s in right), 1], [0, *(s.floors["ideal"] for s in right), 1], color=PALE, linewidth=0.8,
                  linestyle="--", label="draws that are right")
        for color, (name, points) in zip(COLORS, curves.items(), strict=False):
            nominal = [s.settings["level"] for s in points]
            axes.errorbar(nominal, [s.value for s in points], [s.error or 0 for s in points], color=color, marker="o", markersize=3,
                          linewidth=1.3, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_title(title, fontsize=8, loc="left", color=INK)
        axes.set_xlabel("nominal coverage", fontsize=8)
        axes.legend(frameon=False, fontsize=6.5, loc="upper left")
    canvas.axes[0].set_ylabel("share of truths covered", fontsize=8)
    canvas.tight_layout()
    return canvas

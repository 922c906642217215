"""Curves of a training over its updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dscm.figures.style import BLUE, INK, PALE, page, tidy
from mechanisms.base import term_of

Row = Mapping[str, Any]  # one line of metrics.jsonl


def training_curves(metrics_rows: Sequence[Row], title: str = "") -> Figure:
    """Every term of a training in its own panel: training means in grey, validation in blue.

    Args:
        metrics_rows: of ``metrics.jsonl``, see :class:`mechanisms.runs.files.MetricsLog`; at least one.
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
        axes.set_title(_term(term), fontsize=8, loc="left", color=INK)
        axes.set_xlabel("step", fontsize=8)
        # the first training mean covers the untrained model and would flatten all the rest
        seen = [v for v in (*valid, *train[1:]) if math.isfinite(v)]
        room = 0.05 * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - room, max(seen) + room)
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title or f"{steps[-1]} steps, {metrics_rows[-1]['seconds']:.0f} s", fontsize=9, x=0.01, ha="left", color=INK)
    figure.tight_layout(rect=(0, 0, 1, 1.04))
    return figure


def _term(term: str) -> str:
    """An attribute's term as its own name, others as words."""
    return term.removeprefix(term_of("")) if term.startswith(term_of("")) else term.replace("_", " ")

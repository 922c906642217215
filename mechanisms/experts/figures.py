"""Pictures of experts: what each makes of transformed images, and which mechanism each has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mechanisms.experts.metrics import assignment
from mechanisms.experts.model import Experts
from mechanisms.runs.files import replacing
from mechanisms.runs.pages import Page

_INK, _PALE, _ORANGE = "#222222", "#8a8a8a", "#d9730d"
_DPI = 150
_MANY = 12  # experts: more do not fit beside one another


@torch.no_grad()
def grid(model: Experts, images: Tensor, canonical: Tensor, names: Sequence[str] = (), found: Mapping[str, str] | None = None,
         clean: Tensor | None = None) -> Figure:
    """Rows: images. Columns: any canonical image | the clean one, where it is known | the transformed one | each expert's output,
    the winner's framed. Of more than a dozen experts, those that win an image.

    Args:
        images, canonical, clean: float in [0, 1], ``(B, C, H, W)``.
        names: what each row is called.
        found: expert → the mechanism that it serves, for the headings.
    """
    outputs = model.outputs(model.check(images))
    winner = model.scores(outputs).argmax(0).cpu()
    columns = [("canonical", canonical), *([("clean", clean)] if clean is not None else []), ("transformed", images)]
    known, experts = len(columns), range(len(outputs))
    if len(experts) > _MANY:
        experts = winner.unique().tolist()
    columns += [(f"expert {e}" + (f"\n{found[str(e)]}" if found and str(e) in found else ""), outputs[e].cpu()) for e in experts]
    side, gap, left, top = 0.55, 0.06, 0.85 if names else 0.1, 0.45
    figure = _page(left + len(columns) * (side + gap) + 0.1, top + len(images) * (side + gap) + 0.1)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_axis_off()
    width, height = figure.get_size_inches()
    canvas.set(xlim=(0, width), ylim=(height, 0))
    canvas.set_autoscale_on(False)
    for k, (title, shown) in enumerate(columns):
        x = left + k * (side + gap)
        canvas.text(x + side / 2, top - 0.06, title, fontsize=5.5, ha="center", va="bottom", color=_INK)
        for row in range(len(images)):
            y = top + row * (side + gap)
            pixels = shown[row].permute(1, 2, 0) if shown.shape[1] == 3 else shown[row, 0]
            canvas.imshow(pixels.numpy(), extent=(x, x + side, y + side, y), aspect="auto", interpolation="nearest", cmap="gray", vmin=0,
                          vmax=1)
            if k >= known and experts[k - known] == int(winner[row]):
                canvas.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=_ORANGE, linewidth=2))
    for row, name in enumerate(names):
        canvas.text(left - 0.08, top + row * (side + gap) + side / 2, name, fontsize=6, ha="right", va="center", color=_INK)
    return figure


def confusion_figure(counts: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """Experts × mechanisms ``(E, K)``: the share of each mechanism's images that each expert wins, experts sorted by what they found."""
    found = assignment(counts)
    order = sorted(range(len(counts)), key=lambda e: (found.get(e, len(names)), e))
    shares = counts[order] / np.maximum(counts.sum(0, keepdims=True), 1)
    figure = _page(max(2.6, 1.3 + 0.42 * len(names)), 1.2 + (0.32 if len(counts) <= _MANY else 0.16) * len(counts))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color="white" if share > 0.5 else _INK)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=6.5)
    axes.set_yticks(range(len(counts)), [f"expert {e}" for e in order], fontsize=6.5)
    axes.tick_params(length=0)
    axes.set_title(title or "% of a mechanism's images\nthat an expert wins", fontsize=7, loc="left", color=_INK)
    figure.tight_layout()
    return figure


def curves(rows: Sequence[Mapping[str, Any]], experts: int) -> Figure:
    """Discriminator's loss, and each expert's share of wins, loss on what it won, and mean score, against updates.

    Args:
        rows: of ``metrics.jsonl``.
    """
    few = experts <= _MANY  # of more, the lines are too many for names
    figure = _page(9.4 if few else 9, 2.3)
    panels = figure.subplots(1, 4)
    steps = [row["step"] for row in rows]
    panels[0].plot(steps, [row["valid"]["discriminator"] for row in rows], color=_INK, linewidth=1.2)
    panels[0].axhline(2 * np.log(2), color=_PALE, linewidth=0.8, linestyle=":")
    for e in range(experts):
        won, loss = (np.array([row["valid"][f"{name}_{e}"] for row in rows]) for name in ("won", "loss"))
        panels[1].plot(steps, won, linewidth=1)
        panels[2].plot(steps, np.divide(loss, won, out=np.full(len(won), np.nan), where=won > 0), linewidth=1)
        panels[3].plot(steps, [row["valid"][f"score_{e}"] for row in rows], linewidth=1, label=f"{e}")
    titles = ("loss of the discriminator (dotted: a draw)", "share of wins", "loss of an expert on what it won", "mean score of an expert")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=6.5, loc="left", color=_INK)
        axes.tick_params(labelsize=6, length=2, color=_PALE)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("update", fontsize=6.5)
    if few:
        panels[3].legend(fontsize=5, frameon=False, title="expert", title_fontsize=5, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def write(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return path


def _page(width: float, height: float) -> Figure:
    figure = Page(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure

"""TODO."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datasets.schema import Graph, Variable
from dscm.figures.style import BLUE, ORANGE, PALE, heading, page, tidy


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

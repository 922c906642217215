"""A causal graph as inline SVG."""

from __future__ import annotations

from html import escape

from datasets.schema import Graph, Variable

_HEIGHT, _GAP, _BETWEEN, _EDGE = 46, 22, 76, 7  # of a node; between nodes, and between columns; of an arrow's head


def graph_svg(graph: Graph) -> str:
    """The graph as inline SVG: causes to the left of their effects, the image at the far right.

    An edge that skips a column gets a place of its own there, so that it never runs through a node.
    """
    columns, depth = _columns(graph)
    width = {v.name: max(9 * len(v.name), 7 * len(_kind(v))) + 30 for v in graph}
    across = [max(width[name] for name in column if depth[name] == k) for k, column in enumerate(columns)]
    left = [sum(across[:k]) + k * _BETWEEN + 2 for k in range(len(columns))]
    total, height = left[-1] + across[-1] + 2, max(map(len, columns)) * (_HEIGHT + _GAP)
    level = {(k, name): height / 2 + (i - (len(column) - 1) / 2) * (_HEIGHT + _GAP)
             for k, column in enumerate(columns) for i, name in enumerate(column)}

    def box(name: str) -> tuple[float, float, float]:
        """Left and right edge, and middle, of a node."""
        start = left[depth[name]] + (across[depth[name]] - width[name]) / 2
        return start, start + width[name], level[depth[name], name]

    drawn = []
    for variable in graph:
        last = depth[variable.name] - 1
        for k, parent in enumerate(sorted(variable.parents, key=lambda name: level[last, name])):
            _, x, y = box(parent)
            path = f"M{x:.0f},{y:.0f}"
            for column in range(depth[parent] + 1, last + 1):
                path += _curve(x, y, left[column], level[column, parent]) + f"H{left[column] + across[column]:.0f}"
                x, y = left[column] + across[column], level[column, parent]
            start, _, middle = box(variable.name)
            path += _curve(x, y, start - _EDGE, middle + 11 * (k - (len(variable.parents) - 1) / 2))
            drawn.append(f'<path d="{path}" marker-end="url(#arrow)"/>')
    drawn += [_node(variable, *box(variable.name)) for variable in graph]
    said = "; ".join(f"{', '.join(v.parents)} → {v.name}" for v in graph if v.parents)
    return (
        f'<svg viewBox="0 0 {total} {height}" style="max-width:{total}px" role="img" aria-label="Causal graph: {escape(said)}"><defs>'
        f'<marker id="arrow" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="{_EDGE}" markerHeight="{_EDGE}" markerUnits="userSpaceOnUse" '
        f'orient="auto"><path d="M0,0L8,4L0,8Z"/></marker></defs>{"".join(drawn)}</svg>')


def _columns(graph: Graph) -> tuple[list[list[str]], dict[str, int]]:
    """Names in each column, top to bottom, and each variable's column. A name in a later column than its own stands for
    its edges that pass there."""
    depth: dict[str, int] = {}
    for variable in graph:
        depth[variable.name] = 1 + max((depth[p] for p in variable.parents), default=-1)
    depth[graph.image.name] = 1 + max((depth[v.name] for v in graph.attributes), default=-1)
    reach = {v.name: max((depth[w.name] - 1 for w in graph if v.name in w.parents), default=0) for v in graph}
    columns: list[list[str]] = []
    for k in range(depth[graph.image.name] + 1):
        before = {name: i for i, name in enumerate(columns[-1])} if columns else {}
        here = [v.name for v in graph if depth[v.name] == k] + [n for n in before if depth[n] < k <= reach[n]]
        sources = {name: graph[name].parents if depth[name] == k else (name,) for name in here}
        mean = {n: sum(before[s] for s in sources[n]) / max(1, len(sources[n])) for n in here}
        columns.append(sorted(here, key=mean.__getitem__))
    return columns, depth


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    middle = (x + to_x) / 2
    return f"C{middle:.0f},{y:.0f} {middle:.0f},{to_y:.0f} {to_x:.0f},{to_y:.0f}"


def _kind(variable: Variable) -> str:
    return " × ".join(map(str, variable.shape)) if variable.shape else variable.kind


def _node(variable: Variable, left: float, right: float, middle: float) -> str:
    centre, size = (left + right) / 2, f'width="{right - left:.0f}" height="{_HEIGHT}" rx="9"'
    return (
        f'<g class="{variable.kind}"><rect x="{left:.0f}" y="{middle - _HEIGHT / 2:.0f}" {size}/>'
        f'<text x="{centre:.0f}" y="{middle - 2:.0f}">{escape(variable.name)}</text>'
        f'<text class="kind" x="{centre:.0f}" y="{middle + 15:.0f}">{escape(_kind(variable))}</text></g>')

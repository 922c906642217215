"""The files of a comparison: its text, every figure as CSV and JSON, and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dscm.figures.style import save_figure
from dscm.metrics.score import FLOORS
from experiments.comparison.aggregate import Aggregate
from experiments.comparison.figure import comparison_figure, curve_figure
from experiments.comparison.results import Comparison, method_of
from experiments.comparison.text import FLOOR_NAMES, everything, missing, summary
from mechanisms.runs.files import replacing, write_json
from mechanisms.runs.tables import finite, write_table

NAME, CURVE, FORMAT, KIND = "comparison", "curve", 1, "comparison"
COLUMNS = ("contestant", "metric", "intervention", "variable", "settings", "unit", "better", "mean", "error", "over", "seeds", "images",
           "behind", "behind_error", *(f"floor_{name}" for name in FLOORS))


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """``comparison.md``, ``.csv``, ``.json`` and ``.png`` — of several budgets ``curve.md``, … —, each whole or not at all."""
    name = CURVE if comparison.about["budgets"] else NAME
    paths = [folder / f"{name}.{ending}" for ending in ("md", "csv", "json", "png")]
    text = "\n\n".join(("# Counterfactual image models compared", summary(comparison), missing(comparison), everything(comparison)))
    with replacing(paths[0]) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_table(paths[1], COLUMNS, map(long_form, comparison.rows))
    write_json(paths[2], to_dict(comparison))
    panels = [(heading, column.title, column.rows) for heading, columns in comparison.tables() for column in columns]
    names = [name for name in comparison.results if name not in FLOOR_NAMES]
    figure = curve_figure(panels, names) if comparison.about["budgets"] else comparison_figure(panels, names, comparison.bounds)
    save_figure(figure, paths[3])
    return paths


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """``{format, kind, about, contestants, rows, without}`` of plain values; the rows as in the CSV, with each seed's value."""
    methods = {name: {"about": method_of(name).about, "bound": name in comparison.bounds, "seeds": sorted(seeds),
                      "trained": [vars(spent) for spent in comparison.spent.get(name, ())],
                      "missing": next(iter(seeds.values())).missing} for name, seeds in comparison.results.items()}
    rows = [{**long_form(row), "settings": dict(row.quantity.settings), "values": {str(k): finite(v) for k, v in row.values.items()}}
            for row in comparison.rows]
    return {"format": FORMAT, "kind": KIND, "about": dict(comparison.about), "contestants": methods, "rows": rows,
            "without": dict(comparison.without)}


def long_form(row: Aggregate) -> dict[str, Any]:
    """A row as the columns of the CSV; what there is none of is None, which CSV leaves empty."""
    quantity, behind = row.quantity, row.behind or (None, None)
    return {"contestant": row.method, "metric": quantity.metric, "intervention": quantity.intervention, "variable": quantity.variable,
            "settings": json.dumps(dict(quantity.settings)), "unit": row.unit, "better": row.better, "mean": finite(row.mean),
            "error": row.error, "over": row.over, "seeds": len(row.values), "images": row.images, "behind": behind[0],
            "behind_error": behind[1], **{f"floor_{name}": finite(row.floors.get(name)) for name in FLOORS}}

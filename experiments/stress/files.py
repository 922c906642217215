"""A stress test as files: text, tables, plain values and figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dscm.figures.style import save_figure
from experiments.stress.agreement import agreement_figure
from experiments.stress.column import Column
from experiments.stress.figure import robustness_figure
from experiments.stress.results import FIGURES, StressResults
from experiments.stress.run import OBSERVED
from experiments.stress.stresses import WORST_INTERVENTION
from experiments.stress.text import as_markdown, notes
from mechanisms.runs.files import replacing, write_json
from mechanisms.runs.tables import mean_over, write_table

NAME, FORMAT, KIND = "robustness", 1, "robustness"
CSV = ("algorithm", "images_from", "stress", "attribute", "value", "metric", "better", "mean", "error", "seeds", "images", "to_erm",
       "to_erm_error")


def save_results(results: StressResults, folder: Path) -> list[Path]:
    """``robustness.md``, ``.csv``, ``.tsv``, ``.json``, ``.png`` and, where model and truth are compared, ``agreement.png``."""
    paths = [folder / f"{NAME}.{ending}" for ending in ("md", "csv", "tsv", "json", "png")]
    with replacing(paths[0]) as temporary:
        temporary.write_text(f"# Classifiers on intervened images\n\n{as_markdown(results, every_value=True)}\n", encoding="utf-8")
    write_table(paths[1], CSV, rows(results))
    write_table(paths[2], CSV, rows(results))
    write_json(paths[3], to_dict(results))
    panels = {source: results.columns(source) for source in results.sources} or {OBSERVED: results.as_observed()}
    save_figure(robustness_figure(panels, results.names), paths[4])
    if results.agreement is not None:
        paths.append(save_figure(agreement_figure(results.agreement), folder / "agreement.png"))
    return paths


def rows(results: StressResults) -> Iterator[dict[str, Any]]:
    """A row for each algorithm, source, stress and metric; values are shares, not percent."""
    answered = dict.fromkeys((p.source, p.stress, p.attribute, p.value, p.images) for p in results.points)
    for source, stress, attribute, value, images in answered:
        for metric, (better, _) in FIGURES.items():
            yield from _rows(Column(stress, better, results.values(source, stress, metric)), source, attribute, value, metric, images)
    for source in results.sources:
        for attribute in ("", *(v.name for v in results.stressed.task.spurious)):
            column = Column(WORST_INTERVENTION, "higher", results.worst_interventions(source, attribute))
            yield from _rows(column, source, attribute, "", "accuracy", results.stressed.images)


def _rows(column: Column, source: str, attribute: str, value: str, metric: str, images: int) -> Iterator[dict[str, Any]]:
    for name, values in column.values.items():
        mean, error = mean_over(list(values.values()))
        to_erm, to_erm_error = column.to_reference(name) or (None, None)
        yield {"algorithm": name, "images_from": source, "stress": column.title, "attribute": attribute, "value": value,
               "metric": metric, "better": column.better, "mean": mean, "error": error, "seeds": len(values), "images": images,
               "to_erm": to_erm, "to_erm_error": to_erm_error, "values": {str(seed): v for seed, v in values.items()}}


def to_dict(results: StressResults) -> dict[str, Any]:
    """``{format, kind, about, rows, agreement, missing}`` of plain values."""
    test, task = results.stressed, results.stressed.task
    about = {**results.about, "dataset": task.dataset.title, "label": task.label.name, "spurious": [v.name for v in task.spurious],
             "split": test.split, "count": test.images, "seed": test.seed, "rules": dict(results.rules), "notes": notes(results)}
    return {"format": FORMAT, "kind": KIND, "about": about, "rows": list(rows(results)),
            "agreement": None if results.agreement is None else results.agreement.to_dict(), "missing": dict(test.missing)}

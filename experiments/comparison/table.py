"""The tables of a comparison: a few that are read, one with everything, and the same as CSV, JSON and a figure."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from dscm.figures.style import save_figure
from dscm.metrics.score import FLOORS
from experiments.comparison.aggregate import Results, Row, aggregate
from experiments.comparison.figure import comparison_figure, curve_figure
from experiments.comparison.models import CONTESTANTS, Contestant
from mechanisms.runs.files import replacing, write_json
from mechanisms.runs.tables import markdown

NAME, CURVE, FORMAT, KIND = "comparison", "curve", 1, "comparison"
NOTHING, GREY = "–", "grey levels"
FLOOR_NAMES = {"identity": "*floor: copying x*", "truth": "*floor: the truth*", "real": "*floor: real images*", "ideal": "*ideal*"}
COLUMNS = ("contestant", "metric", "intervention", "variable", "settings", "unit", "better", "mean", "error", "over", "seeds", "images",
           "behind", "behind_error", *(f"floor_{name}" for name in FLOORS))

# heading → (metric, settings, what the column is called beside intervention and attribute)
TABLES: Mapping[str, Sequence[tuple[str, Mapping[str, float | str], str]]] = {
    "Error to the true image (L1, of 255) and share of the change that is misplaced":
        (("truth_l1", {}, "L1"), ("truth_l1_true_parents", {}, "L1, true parents"), ("minimality_misplaced", {}, "misplaced")),
    "Does the intervention take effect? Error of the attribute measured on the image":
        (("effectiveness_measured", {}, ""),),
    "The same read by predictors: share of right classes": (("effectiveness_accuracy", {}, ""),),
    "The same read by predictors: mean absolute error": (("effectiveness_predicted", {}, ""),),
    "Again and again: composition and reversibility (L1, of 255, residual temperature 0.1)":
        (("composition_l1", {"temperature": 0.1, "cycles": 1}, "composition, 1 cycle"),
         ("composition_l1", {"temperature": 0.1, "cycles": 10}, "10 cycles"),
         ("reversibility_l1", {"temperature": 0.1, "steps": 2}, "2 steps"),
         ("reversibility_l1", {"temperature": 0.1, "steps": 10}, "10 steps")),
    "Minimality and realism": (("minimality_cld", {}, "CLD"), ("realism_frechet", {}, "Fréchet")),
    "Density, and calibration of the draws (nominal 90 %)":
        (("free_energy", {"logarithm": ""}, "free energy"),  # in bits; in nats it has that setting
         ("coverage_changed_pixel", {"level": 0.9}, "changed pixels covered"),
         ("coverage_attribute", {"level": 0.9}, "covered")),
}


@dataclass(frozen=True)
class Trained:
    """What a training did within its budget."""

    steps: int
    seconds: float
    parameters: int


@dataclass(frozen=True)
class Column:
    """One column of a table that is read: the rows of one figure, by contestant."""

    title: str
    rows: Mapping[str, Row]

    @property
    def best(self) -> str | None:
        """Who is behind nobody."""
        return next((name for name, row in self.rows.items() if row.behind and row.behind[0] == 0), None)

    def floor(self, name: str) -> float | None:
        return next((row.floors[name] for row in self.rows.values() if name in row.floors), None)


@dataclass(frozen=True)
class Report:
    """A comparison's results.

    Attributes:
        about: plain values: ``dataset, options, training_images, questions, budget, draws, border, threads, jobs, …``.
        results: contestant → seed → its evaluation, contestants in the order of the tables.
        trained: contestant → what its trainings did.
        without: who is not in the table → why.
    """

    about: Mapping[str, Any]
    results: Results
    trained: Mapping[str, Sequence[Trained]]
    without: Mapping[str, str]

    @cached_property
    def bounds(self) -> list[str]:
        return [name for name in self.results if _contestant(name).bound]

    @cached_property
    def rows(self) -> list[Row]:
        return aggregate(self.results, self.bounds)

    # ------------------------------------------------------------------------------------------------ what is read
    def tables(self) -> Iterator[tuple[str, list[Column]]]:
        """Headings and columns; none without a figure."""
        for heading, wanted in TABLES.items():
            if columns := [column for metric, settings, word in wanted for column in self.columns(metric, settings, word)]:
                yield heading, columns

    def columns(self, metric: str, settings: Mapping[str, float | str], word: str) -> list[Column]:
        """A column for each intervention and attribute of ``metric``, without the images' border.

        Its rows agree with ``settings`` where they have them: copying x has no residual, so it is the same at any temperature.
        """
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            figure, own = row.figure, dict(row.figure.settings)
            if figure.metric == metric and all(own.get(key, value) == value for key, value in settings.items()):
                unit = f"({row.unit})" if row.unit and row.unit != GREY else ""
                title = ", ".join(filter(None, (" ".join(filter(None, (word, figure.variable, unit))), figure.intervention)))
                if own.get("border", self.about["border"]) == self.about["border"]:
                    found.setdefault(title, {}).setdefault(row.contestant, row)
        return [Column(title, rows) for title, rows in found.items()]

    def summary(self) -> str:
        """The tables that are read, under the conditions they came about."""
        parts = [self.conditions()]
        for heading, columns in self.tables():
            lines = [[self._label(name), *(_cell(column, name) for column in columns)] for name in self.results
                     if name not in FLOOR_NAMES and any(name in column.rows for column in columns)]
            lines += [[label, *(_floor(column, name) for column in columns)] for name, label in FLOOR_NAMES.items()
                      if any(_floor(column, name) != NOTHING for column in columns)]
            parts.append(f"### {heading}\n\n" + markdown(("", *(column.title for column in columns)), lines))
        return "\n\n".join(parts)

    def _label(self, name: str) -> str:
        return f"*bound: {name}*" if name in self.bounds else name

    def conditions(self) -> str:
        """How the figures came about, and who takes part."""
        about, seeds = self.about, {len(self.results[name]) for name in self.trained} or {1}
        count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        spread = ("± is the standard error over images, there being one seed" if seeds == {1} else
                  "± is the standard error over seeds (over images where a contestant has one seed)")
        asked = about["questions"]
        lines = [
            f"**{about['dataset']}**, {about['training_images']:,} images to train on" + "".join(f", {o}" for o in about["options"]) + ".",
            f"Budget of every contestant: {about['budget']} of training with {about['threads']} processor "
            f"thread{'s' * (about['threads'] > 1)}, {about['jobs']} at a time.",
            f"Questions: {asked['count']} images of the {asked['split']} split, interventions on {', '.join(asked['variables'])} "
            f"(seed {asked['seed']}, rows {asked['fingerprint']}), the same for all.",
            f"Seeds: {count}, of weights and training order; {spread}. Bounds without weights are asked once.",
            "Selection: " + ("the last averaged weights" if about["keep"] == "last" else "the averaged weights best on the valid split")
            + "; nothing was chosen by the test split.",
            "Draws: calibrated on the valid split, without any truth (dscm.calibrate)." if about["draws"] else "",
            f"Image errors leave out the {about['border']} outermost pixels on each side." if about["border"] else "",
            "**Bold**: the best mechanism, and those that are not significantly behind it (t-test of the difference by seed, 5 %; of few "
            "seeds it is blunt, and it knows nothing of which images were asked about).",
        ]
        legend = [[self._label(name), _contestant(name).about, *_effort(self.trained.get(name, ()))] for name in self.results]
        left_out = [f"- {name}: {why}" for name, why in self.without.items()]
        table = markdown(("", "what it is", "seeds", "updates", "minutes", "parameters"), legend)
        told = "\n".join(f"- {line}" for line in lines if line)
        return f"{told}\n\n{table}" + ("\n\nNot in the tables:\n\n" + "\n".join(left_out) if left_out else "")

    def everything(self) -> str:
        """Every figure of every contestant, the contestants side by side."""
        figures: dict[Any, dict[str, Row]] = {}
        for row in self.rows:
            figures.setdefault(row.figure, {})[row.contestant] = row
        lines = []
        for figure, rows in figures.items():
            first, settings = next(iter(rows.values())), ", ".join(f"{k} {_plain(v)}" for k, v in figure.settings)
            floors = {name: value for row in rows.values() for name, value in row.floors.items()}
            lines.append([figure.metric, figure.intervention, figure.variable, settings, first.unit,
                          *(written(rows[n].mean, rows[n].error) if n in rows else NOTHING for n in self.results),
                          *(written(floors[n]) if n in floors else NOTHING for n in FLOORS)])
        header = ("metric", "intervention", "attribute", "settings", "unit", *self.results, *(f"floor: {name}" for name in FLOORS))
        return "## Every figure\n\n" + markdown(header, lines)

    def missing(self) -> str:
        """What could not be computed of whom, and why."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, seeds in self.results.items():
            for asked in {key: None for evaluation in seeds.values() for key in evaluation.missing.items()}:
                reasons.setdefault(asked, []).append(name)
        lines = [f"- {what} (of {', '.join(names)}): {why}" for (what, why), names in reasons.items()]
        return "## What is missing\n\n" + ("\n".join(lines) or "Nothing.")

    # ------------------------------------------------------------------------------------------------ files
    def save(self, folder: Path) -> list[Path]:
        """``comparison.md``, ``.csv``, ``.json`` and ``.png`` — of several budgets ``curve.md``, … —, each whole or not at all."""
        name = CURVE if self.about["budgets"] else NAME
        paths = [folder / f"{name}.{ending}" for ending in ("md", "csv", "json", "png")]
        text = "\n\n".join(("# Counterfactual image models compared", self.summary(), self.missing(), self.everything()))
        with replacing(paths[0]) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        with replacing(paths[1]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(map(long_form, self.rows))
        write_json(paths[2], self.to_dict())
        panels = [(heading, column.title, column.rows) for heading, columns in self.tables() for column in columns]
        names = [name for name in self.results if name not in FLOOR_NAMES]
        figure = curve_figure(panels, names) if self.about["budgets"] else comparison_figure(panels, names, self.bounds)
        save_figure(figure, paths[3])
        return paths

    def to_dict(self) -> dict[str, Any]:
        """``{format, kind, about, contestants, rows, without}`` of plain values; the rows as in the CSV, with each seed's value."""
        contestants = {name: {"about": _contestant(name).about, "bound": name in self.bounds, "seeds": sorted(seeds),
                              "trained": [vars(t) for t in self.trained.get(name, ())],
                              "missing": next(iter(seeds.values())).missing} for name, seeds in self.results.items()}
        rows = [{**long_form(row), "settings": dict(row.figure.settings), "values": {str(k): _finite(v) for k, v in row.values.items()}}
                for row in self.rows]
        return {"format": FORMAT, "kind": KIND, "about": dict(self.about), "contestants": contestants, "rows": rows,
                "without": dict(self.without)}


def _contestant(name: str) -> Contestant:
    return CONTESTANTS[name.partition(",")[0]]


def long_form(row: Row) -> dict[str, Any]:
    """A row as the columns of the CSV; what there is none of is None, which CSV leaves empty."""
    figure, behind = row.figure, row.behind or (None, None)
    return {"contestant": row.contestant, "metric": figure.metric, "intervention": figure.intervention, "variable": figure.variable,
            "settings": json.dumps(dict(figure.settings)), "unit": row.unit, "better": row.better, "mean": _finite(row.mean),
            "error": row.error, "over": row.over, "seeds": len(row.values), "images": row.images, "behind": behind[0],
            "behind_error": behind[1], **{f"floor_{name}": _finite(row.floors.get(name)) for name in FLOORS}}


def written(value: float, error: float | None = None) -> str:
    """A value in as many digits as its error lends weight to: two of the error's, else three of its own."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    scale = error if error else value
    digits = min(4, max(0, (1 if error else 2) - math.floor(math.log10(abs(scale))))) if scale else 1
    return (f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")).replace("-", "−")


def _cell(column: Column, name: str) -> str:
    if name not in column.rows:
        return NOTHING
    row = column.rows[name]
    text = written(row.mean, row.error)
    near = row.behind is not None and (row.behind[0] <= 0 or (
        row.behind[1] is not None and row.behind[0] < student.ppf(0.975, len(row.values) - 1) * row.behind[1]))
    return f"**{text}**" if near else text


def _floor(column: Column, name: str) -> str:
    """Of the contestant that is this floor if it was asked, else as the others' scores tell it."""
    value = column.rows[name].mean if name in column.rows else column.floor(name)
    return NOTHING if value is None else written(value)


def _effort(trained: Sequence[Trained]) -> tuple[str, str, str, str]:
    if not trained:
        return ("", "", "", "")
    mean = {key: sum(getattr(t, key) for t in trained) / len(trained) for key in ("steps", "seconds", "parameters")}
    return str(len(trained)), f"{mean['steps']:,.0f}", f"{mean['seconds'] / 60:.1f}", f"{mean['parameters'] / 1e6:.2f} M"


def _plain(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else value


def _finite(value: float | None) -> float | str | None:
    return str(value) if value is not None and math.isinf(value) else value

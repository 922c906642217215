"""The results of a comparison: the figures of all methods, and those of them that are read, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scipy.stats import t as student

from experiments.comparison.aggregate import Aggregate, Results, aggregate
from experiments.comparison.methods import METHODS, Method

GREY = "grey levels"

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
class Spent:
    """What a training did within its budget: updates, seconds, and parameters of the network."""

    steps: int
    seconds: float
    parameters: int


@dataclass(frozen=True)
class QuantityColumn:
    """One column of a table that is read: one quantity, by method."""

    title: str
    rows: Mapping[str, Aggregate]

    def floor(self, name: str) -> float | None:
        """Of the method that is this floor if it was asked, else as the others' scores have it; None where nobody has."""
        if name in self.rows:
            return self.rows[name].mean
        return next((row.floors[name] for row in self.rows.values() if name in row.floors), None)

    def near_best(self, name: str) -> bool:
        """Whether a method is the best mechanism, or not significantly behind it (t-test of the difference by seed, 5 %)."""
        row = self.rows[name]
        if row.behind is None:
            return False
        difference, error = row.behind
        return difference <= 0 or (error is not None and difference < student.ppf(0.975, len(row.values) - 1) * error)


@dataclass(frozen=True)
class Comparison:
    """A comparison's results.

    Attributes:
        about: plain values: ``dataset, options, training_images, questions, budget, draws, border, threads, jobs, …``.
        results: method → seed → its evaluation, methods in the order of the tables.
        spent: method → what its trainings did.
        without: what is not in the tables → why.
    """

    about: Mapping[str, Any]
    results: Results
    spent: Mapping[str, Sequence[Spent]]
    without: Mapping[str, str]

    @cached_property
    def bounds(self) -> list[str]:
        return [name for name in self.results if method_of(name).bound]

    @cached_property
    def rows(self) -> list[Aggregate]:
        return aggregate(self.results, self.bounds)

    def tables(self) -> Iterator[tuple[str, list[QuantityColumn]]]:
        """Headings and columns; none without a figure."""
        for heading, wanted in TABLES.items():
            if columns := [column for metric, settings, word in wanted for column in self.columns(metric, settings, word)]:
                yield heading, columns

    def columns(self, metric: str, settings: Mapping[str, float | str], word: str) -> list[QuantityColumn]:
        """A column for each intervention and attribute of ``metric``, without the images' border.

        Its rows agree with ``settings`` where they have them: copying x has no residual, so it is the same at any temperature.
        """
        columns: dict[str, dict[str, Aggregate]] = {}
        for row in self.rows:
            quantity, given = row.quantity, dict(row.quantity.settings)
            if quantity.metric == metric and all(given.get(key, value) == value for key, value in settings.items()):
                unit = f"({row.unit})" if row.unit and row.unit != GREY else ""
                title = ", ".join(filter(None, (" ".join(filter(None, (word, quantity.variable, unit))), quantity.intervention)))
                if given.get("border", self.about["border"]) == self.about["border"]:
                    columns.setdefault(title, {}).setdefault(row.method, row)
        return [QuantityColumn(title, rows) for title, rows in columns.items()]


def method_of(label: str) -> Method:
    """Of ``hvae`` or ``hvae, 3 min``."""
    return METHODS[label.partition(",")[0]]

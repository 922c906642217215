"""Figures of a stress test: algorithms × stresses, over seeds, with the majority baseline and differences to ERM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from experiments.attribution import focus
from experiments.metrics.classification import MEANINGS
from experiments.stress import ood
from experiments.stress.agreement import Agreement, agreement
from experiments.stress.column import Column
from experiments.stress.run import MAJORITY, MODEL, OBSERVED, TRUTH, Point, Stressed
from experiments.stress.stresses import AS_OBSERVED, WORST_GROUP, WORST_INTERVENTION

SOURCES = {TRUTH: "true images", MODEL: "the model's images"}
TITLES = {"flip_rate": "flip rate", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "auroc": "AUROC",
          "ece": "calibration error"}
FOREGROUND = {**focus.TITLES, **ood.TITLES}
FIGURES = {**MEANINGS, **focus.MEANINGS, **ood.MEANINGS}


@dataclass(frozen=True)
class StressResults:
    """A stress test's figures, as columns of tables: algorithm → seed → value, in [0, 1].

    Attributes:
        rules: algorithm → the selection rule of its weights, in words.
        about: further plain values: ``run``, ``model``.
        remarks: sentences about the classifiers, and those that are left out.
    """

    stressed: Stressed
    rules: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @cached_property
    def points(self) -> tuple[Point, ...]:
        return self.stressed.points

    @cached_property
    def names(self) -> list[str]:
        """Algorithms in the order given, the majority baseline last."""
        return [*(n for n in dict.fromkeys(p.algorithm for p in self.points) if n != MAJORITY), MAJORITY]

    @cached_property
    def agreement(self) -> Agreement | None:
        return agreement(self.stressed)

    @property
    def sources(self) -> list[str]:
        return [source for source in SOURCES if any(p.source == source for p in self.points)]

    @property
    def grouped(self) -> list[tuple[str, str]]:
        """Source and stress of the figures beyond accuracy; the images as observed where there are no others."""
        return [(source, self.unconfounded(source)) for source in self.sources] or [(OBSERVED, AS_OBSERVED)]

    # ------------------------------------------------------------------------------------------------ columns
    def values(self, source: str, stress: str, metric: str) -> dict[str, dict[int | None, float]]:
        """Of one metric under one stress: algorithm → seed → value."""
        values: dict[str, dict[int | None, float]] = {}
        for p in self.points:
            if p.source == source and p.stress == stress and metric in p.measured.values:
                values.setdefault(p.algorithm, {})[p.seed] = p.measured.values[metric]
        return values

    def unconfounded(self, source: str) -> str:
        """The stress of a source under which spurious attributes are independent of the label: all at once, else the first drawn one."""
        answered = {p.stress for p in self.points if p.source == source}
        drawn = [s for s in self.stressed.stresses if not s.value_label and s.name in answered]
        every = {v.name for v in self.stressed.task.spurious}
        return next((s.name for s in drawn if set(s.do) == every and s.name.startswith("do(")), drawn[0].name if drawn else "")

    def columns(self, source: str) -> list[Column]:
        """Accuracy: as observed, under each stress whose values are drawn, in the worst intervention and in the worst group."""
        columns = [Column(AS_OBSERVED, "higher", self.values(OBSERVED, AS_OBSERVED, "accuracy"))]
        columns += [Column(s.name, "higher", self.values(source, s.name, "accuracy")) for s in self.stressed.stresses if not s.value_label]
        columns.append(Column(WORST_INTERVENTION, "higher", self.worst_interventions(source)))
        columns.append(Column(WORST_GROUP, "higher", self.values(source, self.unconfounded(source), "worst_group")))
        return [column for column in columns if column.values]

    def behaviour(self, source: str) -> list[Column]:
        """Flip rate, balanced accuracy, macro-F1, AUROC and calibration error where spurious attributes say nothing about the label."""
        under = self.unconfounded(source)
        columns = [Column(title, MEANINGS[metric][0], self.values(source, under, metric)) for metric, title in TITLES.items()]
        return [column for column in columns if column.values]

    def as_observed(self) -> list[Column]:
        """What there is where nobody can make intervened images: accuracy and the rest on the images as they are."""
        titles = {"accuracy": "accuracy", **TITLES, "worst_group": WORST_GROUP}
        columns = [Column(title, MEANINGS[metric][0], self.values(OBSERVED, AS_OBSERVED, metric)) for metric, title in titles.items()
                if metric != "flip_rate"]  # against these very images
        return [column for column in columns if column.values]

    def foreground(self) -> list[Column]:
        """Where classifiers look, and whether they miss the foreground, on the images as observed; empty where none is known."""
        columns = [Column(title, FIGURES[metric][0], self.values(OBSERVED, AS_OBSERVED, metric)) for metric, title in FOREGROUND.items()]
        return [column for column in columns if column.values]

    def each_value(self, source: str) -> list[Column]:
        """Accuracy under each ``do(a=v)``."""
        columns = [Column(s.name, "higher", self.values(source, s.name, "accuracy")) for s in self.stressed.stresses if s.value_label]
        return [column for column in columns if column.values]

    def worst_interventions(self, source: str, attribute: str = "") -> dict[str, dict[int | None, float]]:
        """The least accuracy over all ``do(a=v)``, of one attribute or of any."""
        least: dict[str, dict[int | None, float]] = {}
        for p in self.points:
            if p.source == source and p.value and attribute in ("", p.attribute):
                by_seed = least.setdefault(p.algorithm, {})
                by_seed[p.seed] = min(by_seed.get(p.seed, 1.0), p.measured.values["accuracy"])
        return least

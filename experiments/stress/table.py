"""Tables of a stress test: algorithms × stresses, over seeds, beside the majority baseline and differences to ERM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dscm.figures.style import save_figure
from experiments.attribution import focus
from experiments.metrics.classification import COVERED, MEANINGS
from experiments.stress import ood
from experiments.stress.agreement import Agreement, agreement, agreement_figure
from experiments.stress.column import NOTHING, REFERENCE, Column
from experiments.stress.figure import robustness_figure
from experiments.stress.run import MAJORITY, MODEL, OBSERVED, TRUTH, Point, Stressed
from experiments.stress.stresses import AS_OBSERVED, WORST_GROUP, WORST_INTERVENTION, distinct_rows
from mechanisms.runs.files import replacing, write_json
from mechanisms.runs.tables import markdown, mean_over, percent, write_table

NAME, FORMAT, KIND = "robustness", 1, "robustness"
CONSTANT = "constant map (chance)"  # what the baseline is where it is asked where classifiers look
SOURCES = {TRUTH: "true images", MODEL: "the model's images"}
TITLES = {"flip_rate": "flip rate", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "auroc": "AUROC",
          "ece": "calibration error"}
FOREGROUND = {**focus.TITLES, **ood.TITLES}
FIGURES = {**MEANINGS, **focus.MEANINGS, **ood.MEANINGS}
CSV = ("algorithm", "images_from", "stress", "attribute", "value", "metric", "better", "mean", "error", "seeds", "images", "to_erm",
       "to_erm_error")


@dataclass(frozen=True)
class Report:
    """A stress test's results.

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
        """Source and stress of what is told beyond accuracy; the images as observed where there are no others."""
        return [(source, self.unconfounded(source)) for source in self.sources] or [(OBSERVED, AS_OBSERVED)]

    # ------------------------------------------------------------------------------------------------ columns
    def values(self, source: str, stress: str, metric: str) -> dict[str, dict[int | None, float]]:
        found: dict[str, dict[int | None, float]] = {}
        for p in self.points:
            if p.source == source and p.stress == stress and metric in p.measured.values:
                found.setdefault(p.algorithm, {})[p.seed] = p.measured.values[metric]
        return found

    def unconfounded(self, source: str) -> str:
        """The stress of a source under which spurious attributes are independent of the label: all at once, else the first drawn one."""
        made = {p.stress for p in self.points if p.source == source}
        drawn = [s for s in self.stressed.stresses if not s.value_label and s.name in made]
        every = {v.name for v in self.stressed.task.spurious}
        return next((s.name for s in drawn if set(s.do) == every and s.name.startswith("do(")), drawn[0].name if drawn else "")

    def columns(self, source: str) -> list[Column]:
        """Accuracy: as observed, under each stress whose values are drawn, in the worst intervention and in the worst group."""
        made = [Column(AS_OBSERVED, "higher", self.values(OBSERVED, AS_OBSERVED, "accuracy"))]
        made += [Column(s.name, "higher", self.values(source, s.name, "accuracy")) for s in self.stressed.stresses if not s.value_label]
        made.append(Column(WORST_INTERVENTION, "higher", self.worst_interventions(source)))
        made.append(Column(WORST_GROUP, "higher", self.values(source, self.unconfounded(source), "worst_group")))
        return [column for column in made if column.values]

    def behaviour(self, source: str) -> list[Column]:
        """Flip rate, balanced accuracy, macro-F1, AUROC and calibration error where spurious attributes say nothing about the label."""
        under = self.unconfounded(source)
        made = [Column(title, MEANINGS[metric][0], self.values(source, under, metric)) for metric, title in TITLES.items()]
        return [column for column in made if column.values]

    def as_observed(self) -> list[Column]:
        """What there is where nobody can make intervened images: accuracy and the rest on the images as they are."""
        titles = {"accuracy": "accuracy", **TITLES, "worst_group": WORST_GROUP}
        made = [Column(title, MEANINGS[metric][0], self.values(OBSERVED, AS_OBSERVED, metric)) for metric, title in titles.items()
                if metric != "flip_rate"]  # against these very images
        return [column for column in made if column.values]

    def foreground(self) -> list[Column]:
        """Where classifiers look, and whether they miss the foreground, on the images as observed; empty where none is known."""
        made = [Column(title, FIGURES[metric][0], self.values(OBSERVED, AS_OBSERVED, metric)) for metric, title in FOREGROUND.items()]
        return [column for column in made if column.values]

    def each_value(self, source: str) -> list[Column]:
        made = [Column(s.name, "higher", self.values(source, s.name, "accuracy")) for s in self.stressed.stresses if s.value_label]
        return [column for column in made if column.values]

    def worst_interventions(self, source: str, attribute: str = "") -> dict[str, dict[int | None, float]]:
        """The least accuracy over all ``do(a=v)``, of one attribute or of any."""
        found: dict[str, dict[int | None, float]] = {}
        for p in self.points:
            if p.source == source and p.value and attribute in ("", p.attribute):
                own = found.setdefault(p.algorithm, {})
                own[p.seed] = min(own.get(p.seed, 1.0), p.measured.values["accuracy"])
        return found

    # ------------------------------------------------------------------------------------------------ text
    def conditions(self, bold: bool = True) -> list[str]:
        """How the figures came about, one statement each; the caption of every table. ``bold``: where cells are marked so."""
        done, task = self.stressed, self.stressed.task
        spurious = ", ".join(v.name for v in task.spurious) or "none named"
        lines = [
            f"{task.dataset.title}: label {task.label.name} ({task.classes} classes), spurious attributes {spurious}. "
            f"{done.images:,} images of distinct subjects of the {done.split} split, at random, the same for all (seed {done.seed}).",
            f"Figures are in percent. {self._seeds()} {done.images:,} images add a sampling error of up to "
            f"{50 / done.images ** 0.5:.1f} points of accuracy that all algorithms share{self._group_error()}.",
            "Selection of the weights: " + "; ".join(f"{rule} ({', '.join(names)})" for rule, names in self._by_rule().items()) + ".",
        ]
        lines.append(self._always())
        if not done.stresses and not done.missing:
            lines.append("No attribute is named that should not matter, and no shift, so that nothing is intervened on (--spurious NAME).")
        words = ["do(a): a drawn from its training values without regard to the image."] if self.sources else []
        words += [f"{WORST_INTERVENTION}: the least accuracy over all do(a=v)."] if self.sources and task.spurious else []
        words += [f"{WORST_GROUP}: {MEANINGS['worst_group'][1]}, {self._where()}."] if self._has_groups() else []
        lines += [" ".join(words)] if words else []
        lines += [" ".join(done.foreground.notes)] if done.foreground else []
        if bold and len(self.names) > 2 and max(self._seed_counts(), default=0) > 1:
            lines.append("Bold: the best, and those not significantly behind it on the same seeds (t-test, 5 %; of few seeds it is blunt).")
        return [*lines, *self.notes()]

    def _always(self) -> str:
        """What the majority baseline answers, in words."""
        label, data, told = self.stressed.task.label, self.stressed.task.dataset, []
        for split in ("train", self.stressed.split):
            counts = torch.bincount(data.split(split).attributes[label.name], minlength=label.cardinality)
            told.append((label.classes[int(counts.argmax())], 100 * int(counts.max()) / int(counts.sum())))
        (always, share), (here, there) = told
        end = f"; that of the {self.stressed.split} split is {here}, {there:.1f} %." if here != always else "."
        return f"{MAJORITY.capitalize()}: always {always}, the commonest in training ({share:.1f} %){end}"

    def _seed_counts(self) -> set[int]:
        return {len({p.seed for p in self.points if p.algorithm == n and p.seed is not None}) for n in self.names} - {0}

    def _seeds(self) -> str:
        counts = self._seed_counts()
        if not counts:
            return "Each classifier was trained once, elsewhere."
        told = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        spread = "with one seed there is no standard error." if counts == {1} else "± is the standard error over seeds."
        return f"Seeds, of weights and training order: {told}; {spread}"

    def _has_groups(self) -> bool:
        return any(self.values(source, stress, "worst_group") for source, stress in self.grouped)

    def _where(self) -> str:
        return " or ".join(dict.fromkeys(f"under {stress}" if source != OBSERVED else "as observed" for source, stress in self.grouped))

    def _group_error(self) -> str:
        """What the worst groups' own numbers of images add, in words."""
        sizes = {p.measured.group_images for p in self.points if (p.source, p.stress) in self.grouped} - {0}
        if not sizes:
            return ""
        told = f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
        return f"; a worst group has {told}, which add up to {50 / min(sizes) ** 0.5:.1f} points"

    def _by_rule(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, rule in self.rules.items():
            found.setdefault(rule, []).append(name)
        return found

    def notes(self) -> list[str]:
        """What could not be computed, and why."""
        task, told = self.stressed.task, list(self.remarks)
        absent = {k for p in self.points for k in p.measured.absent}
        if absent:
            named = ", ".join(task.label.classes[k] for k in sorted(absent))
            told.append(f"No image of class {named}: balanced accuracy and AUROC are means over the other classes.")
        small = {g for p in self.points if (p.source, p.stress) in self.grouped for g in p.measured.small}
        if small:
            left = "" if self._has_groups() else f" {WORST_GROUP} is left out: the others hold less than {COVERED:.0%} of the images."
            more = " --count takes more." if self.stressed.images < len(distinct_rows(task, self.stressed.split)) else ""
            told.append(f"Groups with too few images to be the worst: {len(small)} of {len(task.group_names)}.{left}{more}")
        if self.stressed.missing:
            reasons: dict[str, list[str]] = {}
            for name, why in self.stressed.missing.items():
                reasons.setdefault(why, []).append(name)
            told += [f"Of {', '.join(names)}: {why}." for why, names in reasons.items()]
        return told

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Heading, header and lines of each table that is read."""
        if not self.sources:
            yield "As observed", *self._lines(self.as_observed())
        for source in self.sources:
            words, under = SOURCES[source], self.unconfounded(source)
            yield f"Accuracy, {words}", *self._lines(self.columns(source))
            yield f"Behaviour under {under}, {words}", *self._lines(self.behaviour(source))
            columns = self.columns(source)
            apart = [(n, [c.to_reference(n) for c in columns]) for n in self.names]
            apart = [[n, *(NOTHING if d is None else percent(*d, sign=True) for d in row)] for n, row in apart if any(row)]
            if apart:
                yield f"Difference of accuracy to {REFERENCE} on the same seeds, {words}", ["", *(c.title for c in columns)], apart
        if columns := self.foreground():
            yield "Foreground, images as observed", *self._lines(columns, CONSTANT)

    def details(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Accuracy under each single value."""
        for source in self.sources:
            for variable in self.stressed.task.spurious:
                columns = [c for c in self.each_value(source) if c.title.startswith(f"do({variable.name}=")]
                if columns:
                    yield f"Accuracy under each value of {variable.name}, {SOURCES[source]}", *self._lines(columns)

    def _lines(self, columns: Sequence[Column], baseline: str = MAJORITY) -> tuple[list[str], list[list[str]]]:
        shown = [n for n in self.names if any(n in c.values for c in columns)]
        return ["", *(c.title for c in columns)], [[f"*{baseline}*" if n == MAJORITY else n, *(c.cell(n) for c in columns)] for n in shown]

    def text(self, details: bool = False) -> str:
        """Conditions and tables as Markdown."""
        parts = ["\n".join(f"- {line}" for line in self.conditions())]
        made = [*self.tables(), *(self.details() if details else ())]
        parts += [f"### {heading}\n\n{markdown(header, lines)}" for heading, header, lines in made]
        question = "Does the model's stress test predict the true one?"
        parts.append(f"### {question}\n\n{self.verdict()}" if MODEL in self.sources else f"{question} {self.verdict()}")
        return "\n\n".join(parts)

    def verdict(self) -> str:
        """The agreement in words, or why there is none to speak of."""
        if self.agreement is not None:
            return self.agreement.told()
        if MODEL in self.sources:
            return "It cannot be told: no true image is known under these interventions, so that there is the model's test only."
        if not self.stressed.stresses:
            return "Not asked: there is nothing to intervene on. The table says nothing about robustness to interventions."
        return "Not asked: no model is given (--model RUN)." if self.sources else (
            "Nobody can make intervened images here: the true process is not known, and no model is given (--model RUN). The table says "
            "nothing about robustness.")

    # ------------------------------------------------------------------------------------------------ files
    def save(self, folder: Path) -> list[Path]:
        """``robustness.md``, ``.csv``, ``.tsv``, ``.json``, ``.png`` and, where model and truth are compared, ``agreement.png``."""
        paths = [folder / f"{NAME}.{ending}" for ending in ("md", "csv", "tsv", "json", "png")]
        with replacing(paths[0]) as temporary:
            temporary.write_text(f"# Classifiers on intervened images\n\n{self.text(details=True)}\n", encoding="utf-8")
        write_table(paths[1], CSV, self.rows())
        write_table(paths[2], CSV, self.rows())
        write_json(paths[3], self.to_dict())
        drawn = {source: self.columns(source) for source in self.sources} or {OBSERVED: self.as_observed()}
        save_figure(robustness_figure(drawn, self.names), paths[4])
        if self.agreement is not None:
            paths.append(save_figure(agreement_figure(self.agreement), folder / "agreement.png"))
        return paths

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each algorithm, source, stress and metric; values are shares, not percent."""
        kinds = dict.fromkeys((p.source, p.stress, p.attribute, p.value, p.images) for p in self.points)
        for source, stress, attribute, value, images in kinds:
            for metric, (better, _) in FIGURES.items():
                yield from self._rows(Column(stress, better, self.values(source, stress, metric)), source, attribute, value, metric, images)
        for source in self.sources:
            for attribute in ("", *(v.name for v in self.stressed.task.spurious)):
                column = Column(WORST_INTERVENTION, "higher", self.worst_interventions(source, attribute))
                yield from self._rows(column, source, attribute, "", "accuracy", self.stressed.images)

    def _rows(self, column: Column, source: str, attribute: str, value: str, metric: str, images: int) -> Iterator[dict[str, Any]]:
        for name, values in column.values.items():
            mean, error = mean_over(list(values.values()))
            apart, apart_error = column.to_reference(name) or (None, None)
            yield {"algorithm": name, "images_from": source, "stress": column.title, "attribute": attribute, "value": value,
                   "metric": metric, "better": column.better, "mean": mean, "error": error, "seeds": len(values), "images": images,
                   "to_erm": apart, "to_erm_error": apart_error, "values": {str(seed): v for seed, v in values.items()}}

    def to_dict(self) -> dict[str, Any]:
        """``{format, kind, about, rows, agreement, missing}`` of plain values."""
        done, task = self.stressed, self.stressed.task
        about = {**self.about, "dataset": task.dataset.title, "label": task.label.name, "spurious": [v.name for v in task.spurious],
                 "split": done.split, "count": done.images, "seed": done.seed, "rules": dict(self.rules), "notes": self.notes()}
        return {"format": FORMAT, "kind": KIND, "about": about, "rows": list(self.rows()),
                "agreement": None if self.agreement is None else self.agreement.to_dict(), "missing": dict(done.missing)}

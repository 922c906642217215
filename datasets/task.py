"""A classification task on a data set with a causal story: what is predicted, and what must not matter.

The label is a discrete attribute. Spurious attributes go with it in training; a classifier that survives interventions on
them has not relied on them. Rows are divided into *environments*, in which causes are distributed differently, and into
*groups*, the label's classes crossed with the spurious attributes' classes (of a continuous one: below or above its
training median).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.base import CausalDataset, Split
from datasets.errors import UserError
from datasets.schema import SchemaError, Variable

if TYPE_CHECKING:
    from datasets.base import LazyImages
    from datasets.task import Task

import warnings
from functools import cached_property

from datasets.base import LazyImages
from datasets.columns import as_column, in_order
from datasets.files.lazyrows import CheckedRows, SoundRows

COLUMNS = ("label", "environment", "group", "row")


@dataclass(frozen=True)
class Task:
    """Predict ``label`` from the image; ``spurious`` must not matter. See :func:`task_of`."""

    dataset: CausalDataset
    label: Variable
    spurious: tuple[Variable, ...]
    environment: str = ""
    """Attribute whose class is a row's environment; if empty, what :meth:`datasets.CausalDataset.environments` says."""

    @property
    def classes(self) -> int:
        return self.label.cardinality

    def split(self, name: str) -> Split:
        """The split with the columns ``label``, ``environment``, ``group`` and ``row``, int64 ``(N,)``, instead of its attributes.

        ``row`` is the row's number in the split, by which attributes and counterfactuals are looked up.
        """
        rows = self.dataset.split(name)
        columns = {"label": rows.attributes[self.label.name], "environment": self.environments(name),
                   "group": self.groups(rows.attributes), "row": torch.arange(len(rows))}
        return Split(name, rows.images, columns)

    # ------------------------------------------------------------------------------------------------ environments
    def environments(self, split: str) -> Tensor:
        """``(N,)`` int64; 0 everywhere where there is only one environment.

        Raises:
            SchemaError: for what the data set returns if it is not one integer from 0 on for each row.
        """
        rows = self.dataset.split(split)
        if self.environment:
            return rows.attributes[self.environment]
        if (found := self.dataset.environments(split)) is None:
            return torch.zeros(len(rows), dtype=torch.long)
        where = f"environments({split!r}) of {self.dataset.named_apart}"
        found = as_column(found, where, support="an integer from 0 on in each row")
        if tuple(found.shape) != (len(rows),):
            raise SchemaError(f"{where} has shape {tuple(found.shape)}; the split has {len(rows)} rows: return ({len(rows)},)")
        if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or int(found.min()) < 0:
            raise SchemaError(f"{where} holds {found.dtype}, from {found.min().item()} on; number environments 0..E-1, as integers")
        return found.long()

    @cached_property
    def environment_count(self) -> int:
        """Of the training split."""
        return int(self.environments("train").max()) + 1

    def check_environments(self, needed_by: str) -> None:
        """Raises SchemaError where training has fewer than two environments, or an empty one, and ``needed_by`` needs them."""
        counts = torch.bincount(self.environments("train"), minlength=2)
        if self.environment_count < 2:
            raise SchemaError(f"{needed_by} needs at least two training environments, but {self.dataset.named_apart} has one: define "
                              "environments(split) in its file, or name an attribute: --environment NAME")
        if empty := [str(e) for e, count in enumerate(counts.tolist()) if count == 0]:
            raise SchemaError(f"{needed_by} needs rows in every environment, but environment {', '.join(empty)} of "
                              f"{self.dataset.named_apart} is empty in training; number them 0..E-1 without gaps")

    # ------------------------------------------------------------------------------------------------ shifts
    def shifted(self, name: str, attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """What the data set's shift ``name`` sets, ``{attribute: (B,)}``, given the attributes of B rows.

        Raises:
            SchemaError: for an unknown shift; for one that sets nothing, what is no attribute, values without support, or
                not one value for each row.
        """
        shifts, rows = self.dataset.shifts(), len(attributes[self.label.name])
        if name not in shifts:
            raise SchemaError(f"unknown shift {name!r}; {self.dataset.named_apart} has {', '.join(shifts) or 'none'}")
        where, known = f"the shift {name!r} of {self.dataset.named_apart}", [v.name for v in self.dataset.graph.attributes]
        do = shifts[name](attributes, generator)
        if not isinstance(do, Mapping) or not do or any(n not in known for n in do):
            told = ", ".join(map(str, do)) or "nothing" if isinstance(do, Mapping) else f"a {type(do).__name__}"
            raise SchemaError(f"{where} sets {told}; it must return values for some of {', '.join(known)}, {{name: (B,)}}")
        do = {n: self.dataset.graph[n].check(value, where) for n, value in do.items()}
        if wrong := next((n for n, value in do.items() if len(value) != rows), None):
            raise SchemaError(f"{where} sets {len(do[wrong])} values of {wrong} for {rows} rows; return one for each")
        return do

    # ------------------------------------------------------------------------------------------------ masks
    def masks(self, split: str) -> Tensor | LazyImages | None:
        """The foreground's masks, bool ``(N, H, W)`` or lazily ``(H, W)`` each; None where the data set knows none.

        Masks of which every one is of the whole image are warned of: of them nothing is background.

        Raises:
            SchemaError: for what the data set returns if it is not one bool mask of the image's size for each row.
        """
        if (found := in_order(self.dataset.masks(split))) is None:
            return None
        rows, size = len(self.dataset.split(split)), tuple(self.dataset.schema.image.shape[1:])
        where = f"masks({split!r}) of {self.dataset.named_apart}"
        if len(found) != rows:
            raise SchemaError(f"{where} has {len(found)} masks; the split has {rows} images: return one for each")
        first = torch.as_tensor(found[0])
        if first.dtype != torch.bool or tuple(first.shape) != size:
            raise SchemaError(f"{where} holds {first.dtype} of shape {tuple(first.shape)}; a mask is bool of the image's size {size}")
        found = found if isinstance(found, (Tensor, SoundRows)) else CheckedRows(found, size, where, torch.bool)
        if _all_full(found):
            warnings.warn(f"{where}: every mask is of the whole image, so that nothing is background; a mask is True in the foreground "
                          "alone", stacklevel=2)
        return found

    def check_masks(self, needed_by: str) -> None:
        """Raises SchemaError where nothing says what the foreground is, and ``needed_by`` needs that."""
        if self.masks("train") is None:
            why = self.dataset.masks_missing("train") or "define masks(split) in its file, or take a data set that has them"
            raise SchemaError(f"{needed_by} needs the foreground's masks or boxes, but {self.dataset.named_apart} has none: {why}")

    # ------------------------------------------------------------------------------------------------ groups
    def check_relabelling(self, needed_by: str, remedy: str = "") -> None:
        """Raises SchemaError, ``remedy`` at its end, where do(label) would change of the image only what the spurious attributes do."""
        names, reached = {v.name for v in self.spurious}, {self.label.name}
        for variable in self.dataset.schema:  # causes come before effects
            if variable.name not in names and reached & set(variable.parents):
                reached.add(variable.name)
        if self.dataset.schema.image.name not in reached:
            through = ", ".join(sorted(names)) or "nothing"
            raise SchemaError(f"{needed_by} needs a label that causes the image, but in {self.dataset.named_apart} do({self.label.name}) "
                              f"reaches it through {through} alone: what shows the class would stay{remedy}")

    def parts(self, variable: Variable) -> tuple[str, ...]:
        """Names of the classes into which a variable divides the rows."""
        if variable.discrete:
            return variable.classes
        return f"≤ {self._median(variable):.3g}", f"> {self._median(variable):.3g}"

    def part(self, variable: Variable, values: Tensor) -> Tensor:
        """Which of :meth:`parts` each value ``(B,)`` belongs to."""
        return values.long() if variable.discrete else (values > self._median(variable)).long()

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """``label=class, spurious=class, …`` of every group, in the order of their numbers."""
        names = [""]
        for variable in (self.label, *self.spurious):
            names = [f"{name}{', ' if name else ''}{variable.name}={part}" for name in names for part in self.parts(variable)]
        return tuple(names)

    def groups(self, attributes: Mapping[str, Tensor]) -> Tensor:
        """The group of each row, ``(B,)``, from its attributes."""
        number = torch.zeros_like(attributes[self.label.name])
        for variable in (self.label, *self.spurious):
            number = number * len(self.parts(variable)) + self.part(variable, attributes[variable.name])
        return number

    def check_groups(self, needed_by: str) -> None:
        """Raises SchemaError where there is no spurious attribute to make groups from, and ``needed_by`` needs them."""
        if not self.spurious:
            raise SchemaError(f"{needed_by} needs groups, but {self.dataset.named_apart} names no spurious attribute: set spurious in its "
                              "file, or name some: --spurious NAME")

    def _median(self, variable: Variable) -> float:
        return float(self.dataset.split("train").attributes[variable.name].median())


def _all_full(masks: Tensor | LazyImages) -> bool:
    """Whether every mask is of the whole image; of masks that are read one by one, no more are read than tell."""
    if isinstance(masks, Tensor):
        return bool(masks.all())
    for row in range(len(masks)):
        try:
            if not torch.as_tensor(masks[row]).all():
                return False
        except UserError:  # is said when that mask is needed
            continue
    return True


def task_of(dataset: CausalDataset, label: str = "", spurious: tuple[str, ...] | None = None, environment: str = "") -> Task:
    """The task that a data set declares, or another one on the same data.

    Args:
        label: a discrete attribute; the data set's own if empty.
        spurious: attributes; the data set's own if None.
        environment: a discrete attribute; the data set's own environments if empty.

    Raises:
        SchemaError: for a data set without a label, unknown attributes, a label that is not discrete or has only one
            class in training, or a label among the spurious attributes.
    """
    label = label or dataset.label
    discrete = [v.name for v in dataset.schema.attributes if v.discrete]
    if not label:
        raise SchemaError(f"{dataset.named_apart} has no label to classify; name one: --label {' or '.join(discrete) or '(none)'}")
    graph = dataset.graph
    known = [v.name for v in graph.attributes]
    spurious = dataset.spurious if spurious is None else spurious
    for what, name in (("label", label), *(("spurious attribute", name) for name in spurious), ("environment", environment)):
        if name and name not in known:
            raise SchemaError(f"unknown {what} {name!r}; {dataset.named_apart} has {', '.join(known)}")
    for what, name in (("label", label), ("environment", environment)):
        if name and not graph[name].discrete:
            raise SchemaError(f"the {what} {name!r} is a number, not a class; valid are {', '.join(discrete) or 'none'}")
    if label in spurious:
        raise SchemaError(f"{label!r} cannot be both the label and a spurious attribute")
    if sum(count > 0 for count in graph[label].statistics.counts) < 2:
        raise SchemaError(f"the training split of {dataset.named_apart} has one class of {label!r} only; there is nothing to classify")
    return Task(dataset, graph[label], tuple(graph[name] for name in spurious), environment)


@dataclass(frozen=True)
class Sizes:
    """How many classes, training environments, groups, and named shifts that a selection rule looks at, a task has."""

    classes: int
    environments: int = 1
    groups: int = 1
    shifts: int = 0


def changes_label(task: Task, names: Mapping[str, Tensor] | Sequence[str]) -> bool:
    """Whether ``do(names)`` may give images another label."""
    return task.label.name in names or task.label.name in task.dataset.schema.descendants(names)


def check_label(task: Task, names: Mapping[str, Tensor] | Sequence[str], what: str) -> None:
    """Raises SchemaError where ``do(names)``, told as ``what``, would change the label."""
    if changes_label(task, names):
        raise SchemaError(f"{what} of {task.dataset.title} would change the label {task.label.name!r} itself, so no classifier can be "
                          "asked to keep its answer; name other spurious attributes: --spurious NAME")

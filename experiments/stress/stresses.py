"""Images under interventions on spurious attributes: stress tests of classifiers, and training on counterfactuals.

A stress asks the same rows the same question of every classifier, and of both sources of images: the true process and a
learned DSCM. Values of ``do(a ~ marginal)`` are drawn once, from what training has shown of ``a``, without regard to the
row, so that ``a`` no longer says anything about the label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.schema import SchemaError, Variable
from datasets.task import Task, changes_label, check_label
from dscm.model import DSCM
from experiments.training.counterfactuals import ABDUCTION, CHUNK, marginal
from mechanisms.training.noise import seeded, some_of

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of its training marginal: the values that a continuous attribute is set to."""
AS_OBSERVED, WORST_INTERVENTION, WORST_GROUP = "observational", "worst intervention", "worst group"  # columns of tables
_ROWS = 10**6 + 1  # the stream of which rows, apart from those of drawn values


@dataclass(frozen=True)
class Stress:
    """``do`` on the rows ``index`` of a split.

    Attributes:
        name: ``do(hue)``, ``do(hue=3)``, ``do(hue, size)`` or the name of one of the data set's shifts.
        attribute: the spurious attribute, or "" where it is not about a single one.
        value_label: the value that all rows are set to, in words; "" where values are drawn.
        index: ``(B,)`` row numbers.
        do: ``{name: (B,)}`` in physical units; empty for the rows as observed.
    """

    name: str
    attribute: str
    value_label: str
    index: Tensor
    do: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.index)

    def parts(self) -> list[Stress]:
        """The same, some rows at a time: as many images as are made, and held, at once."""
        return [replace(self, index=self.index[rows], do={name: value[rows] for name, value in self.do.items()})
                for rows in torch.arange(len(self)).split(CHUNK)]


def distinct_rows(task: Task, split: str = "test") -> Tensor:
    """The first row of each subject, ascending; every row where each shows its own."""
    subjects = task.dataset.distinct_subjects(split)
    if subjects is None:
        return torch.arange(len(task.dataset.split(split)))
    _, inverse = subjects.unique(return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(inverse)).scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    return first.sort().values


def draw_rows(task: Task, split: str = "test", count: int = 1000, seed: int = 0) -> Tensor:
    """``count`` distinct subjects at random, ``(count,)`` row numbers, ascending: many a split is sorted by class.

    Raises:
        SchemaError: for a count below 2, or above the number of distinct subjects.
    """
    distinct = distinct_rows(task, split)
    if not 2 <= count <= len(distinct):
        raise SchemaError(f"count={count}: the {split} split of {task.dataset.title} has {len(distinct)} images of distinct subjects; take "
                          f"2..{len(distinct)}")
    return distinct[some_of(len(distinct), count, seed, _ROWS)]


def draw_stresses(task: Task, split: str = "test", count: int = 1000, seed: int = 0) -> list[Stress]:
    """Interventions on the spurious attributes, all about the same rows, see :func:`draw_rows`.

    In order: ``do(a)`` for each spurious attribute a, drawn from its training marginal; all of them at once, where there
    are several, each drawn on its own; ``do(a=v)`` for each class that training has shown (of a continuous one, five
    quantiles); the shifts that the data set names. None where there is neither. A function of data set, split, count and seed
    alone.

    Raises:
        SchemaError: for an intervention that would change the label; for a shift that does not return what it should, or is
            called as another column; see also :func:`draw_rows`.
    """
    stresses = _drawn_stresses(task, split, count, seed)
    for stress in stresses:
        check_label(task, stress.do, stress.name)
    return stresses


def possible_stresses(task: Task, split: str = "test", count: int = 1000, seed: int = 0) -> tuple[list[Stress], dict[str, str]]:
    """Those of :func:`draw_stresses` that leave the label as it is, and name → why not of the others.

    Where a spurious attribute causes the label, as cameras decide which animals come by, the images as observed may be all
    that is left. ``do(a=…)`` stands for all values of a.

    Raises:
        SchemaError: see :func:`draw_stresses`, but for the label.
    """
    left: list[Stress] = []
    refused: dict[str, str] = {}
    for stress in _drawn_stresses(task, split, count, seed):
        if changes_label(task, stress.do):
            refused[f"do({stress.attribute}=…)" if stress.value_label else stress.name] = (
                f"not asked, since the label {task.label.name!r} itself would change, so no classifier could be asked to keep its answer")
        else:
            left.append(stress)
    return left, refused


def _drawn_stresses(task: Task, split: str, count: int, seed: int) -> list[Stress]:
    index, training = draw_rows(task, split, count, seed), task.dataset.split("train").attributes
    present = {name: values[index] for name, values in task.dataset.split(split).attributes.items()}
    drawn = {v.name: marginal(training[v.name], count, seeded(seed, k)) for k, v in enumerate(task.spurious)}
    stresses = [Stress(f"do({name})", name, "", index, {name: values}) for name, values in drawn.items()]
    if len(drawn) > 1:
        stresses.append(Stress(f"do({', '.join(drawn)})", "", "", index, dict(drawn)))
    for variable in task.spurious:
        for value, label in values_of(variable, training[variable.name]):
            do = {variable.name: value.expand(count).clone()}
            stresses.append(Stress(f"do({variable.name}={label})", variable.name, label, index, do))
    for k, name in enumerate(task.dataset.shifts()):
        if name in (AS_OBSERVED, WORST_INTERVENTION, WORST_GROUP, *(s.name for s in stresses)):
            raise SchemaError(f"the shift {name!r} of {task.dataset.title} is called as another column of the table; give it another name")
        stresses.append(Stress(name, "", "", index, task.shifted(name, present, seeded(seed, len(task.spurious), k))))
    return stresses


def values_of(variable: Variable, training: Tensor) -> list[tuple[Tensor, str]]:
    """What an attribute is set to, a scalar and its label each: classes that training has shown, or five quantiles."""
    if variable.discrete:
        seen = torch.bincount(training, minlength=variable.cardinality) > 0
        return [(torch.tensor(k), variable.classes[k]) for k in range(variable.cardinality) if seen[k]]
    values = torch.quantile(training.double()[: 2**24], torch.tensor(QUANTILES, dtype=torch.float64)).float().unique()
    short = [f"{float(value):.3g}" for value in values]
    return list(zip(values, short if len(set(short)) == len(short) else [f"{float(value):.9g}" for value in values], strict=True))


# -------------------------------------------------------------------------------------------------------- images


def observed_images(task: Task, stress: Stress, split: str) -> Tensor:
    """The rows as they were observed, float ``(B, C, H, W)``."""
    return task.dataset.split(split).batch(stress.index)["image"]


def has_truth(task: Task, stress: Stress) -> bool:
    """Whether the true process can make the images of ``stress``."""
    return not stress.do or task.dataset.has_truth(list(stress.do))


def true_images(task: Task, stress: Stress, split: str) -> Tensor:
    """What the true process makes of the rows under ``stress``, float ``(B, C, H, W)``.

    Raises:
        SchemaError: where the process is not known, or this intervention has no true image.
    """
    if not stress.do:
        return observed_images(task, stress, split)
    return task.dataset.true_worlds(split, stress.index, stress.do)["image"]


def model_images(dscm: DSCM, task: Task, stress: Stress, split: str, seed: int = 0, first: int = 0) -> Tensor:
    """What ``dscm`` makes of the same rows under the same values, float ``(B, C, H, W)`` on the CPU.

    Args:
        first: of which part of a whole stress these rows are, see :meth:`Stress.parts`; each has noise of its own.
    """
    rows = task.dataset.split(split)
    return torch.cat([dscm.counterfactual(rows.batch(part.index), part.do, generator=seeded(seed, ABDUCTION, k)).image.cpu()
                      for k, part in enumerate(stress.parts(), first)])


# -------------------------------------------------------------------------------------------------------- training


"""Rules by which the weights of a training are selected, and the validation rows that these look at.

Every classifier is judged with one rule, and tables say which: ``last`` takes the weights of the end; ``iid`` those of
the highest accuracy on validation images as observed; ``worst-group`` those whose worst group of validation images does
best; ``oracle`` those that do best under the data set's named shifts. That last one looks at what the test looks at, so
it says what could be had, not what one would get.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from datasets.base import Split
from datasets.task import Sizes, Task
from experiments.metrics.groups import part_weights, worst_group
from mechanisms.training.noise import seeded, some_of

_ROWS = 10**6  # the stream of which rows, apart from those of shifts' values
_TIE = 1e-9  # per nat of loss: far less than one row


def shifts_of(task: Task, split: str = "valid") -> list[str]:
    """Names of the data set's shifts whose true images are known."""
    dataset = task.dataset
    attributes = {name: value[:1] for name, value in dataset.split(split).attributes.items()}
    return [name for name in dataset.shifts() if dataset.has_truth(list(task.shifted(name, attributes, seeded(0))))]


def selection_split(task: Task, count: int, seed: int = 0) -> Split:
    """``count`` validation rows at random, ascending, as observed and, after them, under every shift with true images.

    Columns, ``(N,)``: those of :meth:`datasets.Task.split`; ``shift``, 0 as observed, else the number of the shift from 1;
    and the weights ``observed``, ``in_group`` and ``in_shift``, by which the mean of a term over all rows is its mean over
    the observed rows, those of one group and those of one shift.

    Args:
        seed: of which rows, and of the shifts' random values.
    """
    rows, attributes = task.split("valid"), task.dataset.split("valid").attributes
    index = some_of(len(rows), count, seed, _ROWS)
    seen = rows.batch(index)
    images = [(seen.pop("image") * 255).round().to(torch.uint8)]
    columns = [{**seen, "shift": torch.zeros(len(index), dtype=torch.long)}]
    for k, name in enumerate(shifts_of(task), 1):
        do = task.shifted(name, {n: value[index] for n, value in attributes.items()}, seeded(seed, k))
        values = task.dataset.true_worlds("valid", index, do)
        images.append((values["image"] * 255).round().to(torch.uint8))
        columns.append({**seen, "label": values[task.label.name], "group": task.groups(values), "shift": torch.full_like(index, k)})
    joined = {name: torch.cat([c[name] for c in columns]) for name in columns[0]}
    return Split("valid", torch.cat(images), {**joined, **part_weights(joined["group"], joined["shift"])})


def criteria(split: Split, sizes: Sizes) -> dict[str, Callable[[Mapping[str, float]], float]]:
    """Rule → what it minimises, a function of the means of terms on ``split``; ``oracle`` only where there are shifts.

    Of equal accuracies the one of less loss is better.
    """
    def accuracy(means: Mapping[str, float]) -> float:
        return _TIE * means["loss"] - means["accuracy"]

    def worst(means: Mapping[str, float]) -> float:
        return _TIE * means["loss"] - worst_group(means, split)

    def oracle(means: Mapping[str, float]) -> float:
        return _TIE * means["loss"] - sum(means[f"shift_{k}"] for k in range(sizes.shifts)) / sizes.shifts

    return {"iid": accuracy, "worst-group": worst, **({"oracle": oracle} if sizes.shifts else {})}

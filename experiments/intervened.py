"""Images under interventions on spurious attributes: stress tests of classifiers, and training on counterfactuals.

A stress asks the same rows the same question of every classifier, and of both sources of images: the true process and a
learned DSCM. Values of ``do(a ~ marginal)`` are drawn once, from what training has shown of ``a``, without regard to the
row, so that ``a`` no longer says anything about the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from datasets.base import CausalDataset, Split, fingerprint
from datasets.schema import SchemaError, Variable
from datasets.task import Task
from dscm.exported import weights_hash
from dscm.model import DSCM
from mechanisms.checkpoint import RunError, load, save, waiting
from mechanisms.noise import seeded, some_of
from mechanisms.runs import recorded

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of its training marginal: the values that a continuous attribute is set to."""
AS_OBSERVED, WORST_INTERVENTION, WORST_GROUP = "observational", "worst intervention", "worst group"  # columns of tables
_CHUNK = 512  # rows that are made at once; part of what a seed means, since noise is drawn for each chunk
_ABDUCTION, _ROWS = 10**6, 10**6 + 1  # the streams of latents' noise and of which rows, apart from those of drawn values


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
                for rows in torch.arange(len(self)).split(_CHUNK)]


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
    made = _drawn_stresses(task, split, count, seed)
    for stress in made:
        check_label(task, stress.do, stress.name)
    return made


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
    drawn = {v.name: _marginal(training[v.name], count, seeded(seed, k)) for k, v in enumerate(task.spurious)}
    made = [Stress(f"do({name})", name, "", index, {name: values}) for name, values in drawn.items()]
    if len(drawn) > 1:
        made.append(Stress(f"do({', '.join(drawn)})", "", "", index, dict(drawn)))
    for variable in task.spurious:
        for value, label in values_of(variable, training[variable.name]):
            made.append(Stress(f"do({variable.name}={label})", variable.name, label, index, {variable.name: value.expand(count).clone()}))
    for k, name in enumerate(task.dataset.shifts()):
        if name in (AS_OBSERVED, WORST_INTERVENTION, WORST_GROUP, *(stress.name for stress in made)):
            raise SchemaError(f"the shift {name!r} of {task.dataset.title} is called as another column of the table; give it another name")
        made.append(Stress(name, "", "", index, task.shifted(name, present, seeded(seed, len(task.spurious), k))))
    return made


def changes_label(task: Task, names: Mapping[str, Tensor] | Sequence[str]) -> bool:
    """Whether ``do(names)`` may give images another label."""
    return task.label.name in names or task.label.name in task.dataset.schema.descendants(names)


def check_label(task: Task, names: Mapping[str, Tensor] | Sequence[str], what: str) -> None:
    """Raises SchemaError where ``do(names)``, told as ``what``, would change the label."""
    if changes_label(task, names):
        raise SchemaError(f"{what} of {task.dataset.title} would change the label {task.label.name!r} itself, so no classifier can be "
                          "asked to keep its answer; name other spurious attributes: --spurious NAME")


def values_of(variable: Variable, training: Tensor) -> list[tuple[Tensor, str]]:
    """What an attribute is set to, a scalar and its label each: classes that training has shown, or five quantiles."""
    if variable.discrete:
        seen = torch.bincount(training, minlength=variable.cardinality) > 0
        return [(torch.tensor(k), variable.classes[k]) for k in range(variable.cardinality) if seen[k]]
    values = torch.quantile(training.double()[: 2**24], torch.tensor(QUANTILES, dtype=torch.float64)).float().unique()
    short = [f"{float(value):.3g}" for value in values]
    return list(zip(values, short if len(set(short)) == len(short) else [f"{float(value):.9g}" for value in values], strict=True))


def _marginal(training: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return training[torch.randint(len(training), (count,), generator=generator)]


# -------------------------------------------------------------------------------------------------------- images
def check_model(run: Path, dscm: DSCM, dataset: CausalDataset) -> None:
    """That the model of a run folder was trained on this data set's images, or on those that its rows were selected from.

    Raises:
        RunError: for a model of another graph, training split, or rows; or of other images of the same rows.
    """
    inner = dataset.answered_by
    if difference := dscm.graph.difference(inner.graph):
        raise RunError(f"--model {run} was trained on other data than the classifiers are about (model against data): {difference}")
    record = recorded(run)
    if record.get("rows", inner.training_fingerprint) != inner.training_fingerprint:
        began = ", ".join(f"{key}={value}" for key, value in record["options"].items()) or "no options"
        raise RunError(f"--model {run} was trained on other images than those of {inner.title} here: it was begun with {record['dataset']} "
                       f"({began}). Train one on the same data, with the same options")


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
    return torch.cat([dscm.counterfactual(rows.batch(part.index), part.do, generator=seeded(seed, _ABDUCTION, k)).image.cpu()
                      for k, part in enumerate(stress.parts(), first)])


# -------------------------------------------------------------------------------------------------------- training
def training_counterfactuals(task: Task, source: DSCM | None, per_row: int = 1, seed: int = 0, folder: Path | None = None,
                             relabel: bool = False) -> Tensor:
    """uint8 ``(N, M, C, H, W)``: M counterfactuals of each training row, under which its label stays.

    In each, every spurious attribute is set to a draw of its own from its training marginal, all at once.

    Args:
        relabel: instead, set the label to a random other class, and the spurious attributes to what they are: what shows the class
            changes, and the rest stays.
        source: the learned model; None for the true process.
        per_row: M.
        folder: where they are kept for the next time; several processes that ask at once wait for the first. Without it,
            they are made anew.

    Raises:
        SchemaError: without spurious attributes; where they would change the label; for ``per_row`` below 1.
        RunError: without a source: no model is given and the process is not known; for a folder that cannot be written.
    """
    names = [v.name for v in task.spurious]
    if relabel:
        task.check_relabelling("training on images of other classes")
        names = [task.label.name, *names]
    else:
        task.check_groups("training on counterfactuals")
        check_label(task, names, f"do({', '.join(names)})")
    if per_row < 1:
        raise SchemaError(f"per_row={per_row} must be at least 1")
    if source is None and not task.dataset.has_truth(names):
        raise RunError(f"{task.dataset.title} has no true images under do({', '.join(names)}), so its counterfactuals must come from a "
                       "learned model: --model RUN (train one with pgm.train and mechanisms.train)")
    rows = task.dataset.split("train")
    if folder is None:
        return _made(task, source, rows, per_row, seed, relabel)
    key = {"source": "truth" if source is None else weights_hash(source), "names": names, "per_row": per_row, "seed": seed,
           "rows": fingerprint(rows, torch.arange(len(rows)))}
    path = folder / f"{'relabelled' if relabel else 'counterfactuals'}-{key['source']}-{per_row}x-seed-{seed}.pt"
    with waiting(folder / ".counterfactuals.lock"):
        if path.exists() and (state := load(path, "counterfactuals"))["key"] == key:
            return state["images"]
        images = _made(task, source, rows, per_row, seed, relabel)
        save(path, {"kind": "counterfactuals", "key": key, "images": images})
    return images


def _made(task: Task, source: DSCM | None, rows: Split, per_row: int, seed: int, relabel: bool = False) -> Tensor:
    """As they are made, chunk by chunk, with a bar."""
    from tqdm import tqdm

    images = torch.empty(len(rows), per_row, *task.dataset.schema.image.shape, dtype=torch.uint8)
    with tqdm(total=len(rows) * per_row, desc="counterfactuals of the training split", unit=" images", delay=2) as bar:
        for m in range(per_row):
            if relabel:
                classes, own = task.classes, rows.attributes[task.label.name]
                other = (own + torch.randint(1, classes, own.shape, generator=seeded(seed, m))) % classes
                do = {task.label.name: other, **{v.name: rows.attributes[v.name] for v in task.spurious}}
            else:
                do = {v.name: _marginal(rows.attributes[v.name], len(rows), seeded(seed, m, k)) for k, v in enumerate(task.spurious)}
            for k, index in enumerate(torch.arange(len(rows)).split(_CHUNK)):
                asked = {name: value[index] for name, value in do.items()}
                if source is None:
                    made = task.dataset.true_counterfactual("train", index, asked)["image"]
                else:
                    made = source.counterfactual(rows.batch(index), asked, generator=seeded(seed, m, _ABDUCTION, k)).image.cpu()
                images[index, m] = (made * 255).round().to(torch.uint8)
                bar.update(len(index))
    return images

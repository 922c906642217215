"""Classifiers on intervened images: every classifier on the same images, each stress made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datasets.schema import SchemaError
from datasets.task import Task
from dscm.model import DSCM
from experiments.attribution.focus import NONE
from experiments.metrics.classification import Measured, majority, measure
from experiments.stress.foreground import ForegroundTest, foreground_test
from experiments.stress.stresses import (
    AS_OBSERVED,
    Stress,
    draw_rows,
    has_truth,
    model_images,
    observed_images,
    possible_stresses,
    true_images,
)

OBSERVED, TRUTH, MODEL = "observed", "truth", "model"  # where images come from
MAJORITY = "majority class"
_BATCH = 500


@dataclass(frozen=True)
class Classifier:
    """A classifier of one seed; ``predict`` maps images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``.

    ``seed`` is None for a classifier that was not trained here, so that it is not paired with any that was; ``network`` is what
    gives these logits, where it can be looked into.
    """

    algorithm: str
    seed: int | None
    predict: Callable[[Tensor], Tensor]
    network: nn.Module | None = None


@dataclass(frozen=True)
class Point:
    """What one classifier makes of one stress.

    Attributes:
        source: ``observed``, ``truth`` or ``model``.
        stress, attribute, value: see :class:`experiments.stress.stresses.Stress`.
        images: how many.
    """

    algorithm: str
    seed: int | None
    source: str
    stress: str
    attribute: str
    value: str
    images: int
    measured: Measured


@dataclass(frozen=True)
class Stressed:
    """All points; which stresses could not be made, name → why; and how figures about the foreground came about, if there are any."""

    task: Task
    split: str
    seed: int
    stresses: tuple[Stress, ...]
    points: tuple[Point, ...]
    missing: dict[str, str]
    foreground: ForegroundTest | None = None

    @property
    def images(self) -> int:
        return self.points[0].images

    def different(self) -> list[Stress]:
        """Stresses of which no two ask the same; of those that do, the first."""
        kept: list[Stress] = []
        for stress in self.stresses:
            if not any(stress.do.keys() == s.do.keys() and all(torch.equal(v, s.do[n]) for n, v in stress.do.items()) for s in kept):
                kept.append(stress)
        return kept

    def changed(self, stress: Stress) -> float:
        """Share of the rows in which a stress sets something to what it was not."""
        observed = self.task.dataset.split(self.split).attributes
        other = [value != observed[name][stress.index] for name, value in stress.do.items()]
        return float(torch.stack(other).any(0).double().mean())


def stress_test(task: Task, classifiers: Sequence[Classifier], dscm: DSCM | None = None, split: str = "test", count: int = 1000,
                seed: int = 0, device: torch.device | str = "cpu", focus: str = NONE, ood: str = NONE) -> Stressed:
    """Evaluate every classifier, and the majority baseline, on the rows as observed and under each stress.

    Images are made by the true process where it is known, and by ``dscm`` where one is given, some hundred at a time, and are
    gone once all classifiers have seen them. Where nothing is spurious and no shift is named, or the label would change under
    all of them, there are those as observed alone.

    Args:
        focus: method of attribution by which it is told where classifiers look, where the foreground is known; or ``none``.
        ood: what fills the foreground's place to see whether they miss it; or ``none``.

    Raises:
        SchemaError: see :func:`experiments.stress.stresses.possible_stresses`; without classifiers.
        RunError: see :func:`experiments.stress.foreground.foreground_test`.
    """
    from tqdm import tqdm

    if not classifiers:
        raise SchemaError("there is no classifier to test")
    stresses, missing = possible_stresses(task, split, count, seed)
    index, rows = draw_rows(task, split, count, seed), task.dataset.split(split)
    attributes = {name: value[index] for name, value in rows.attributes.items()}
    labels = attributes[task.label.name]
    training = task.dataset.split("train").attributes[task.label.name]
    plain = Stress(AS_OBSERVED, "", "", index, {})
    observed = _logits(classifiers, (observed_images(task, part, split) for part in plain.parts()), device)
    groups = task.groups(attributes) if task.spurious else None
    foreground = _foreground(task, split, index, classifiers, focus, ood, seed, device)
    measured = [*(measure(logits, labels, groups) for logits in observed), majority(training, labels, task.classes, groups)]
    if foreground is not None:
        further = [*foreground.values, foreground.floor]
        measured = [replace(m, values={**m.values, **values}) for m, values in zip(measured, further, strict=True)]
    baseline = Classifier(MAJORITY, None, _no_answer)
    points = [_point(c, OBSERVED, plain, m) for c, m in zip([*classifiers, baseline], measured, strict=True)]
    for stress in tqdm(stresses, desc="stress tests", unit=" stress", delay=1, dynamic_ncols=True):
        groups = groups_under(task, attributes, stress)
        for source, images in _sources(task, stress, split, dscm, seed):
            for classifier, before, now in zip(classifiers, observed, _logits(classifiers, images, device), strict=True):
                points.append(_point(classifier, source, stress, measure(now, labels, groups, before)))
            points.append(_point(baseline, source, stress, majority(training, labels, task.classes, groups)))
        if not has_truth(task, stress):
            missing[stress.name] = "no true images" + ("" if dscm else ", and no model is given (--model RUN)")
    return Stressed(task, split, seed, tuple(stresses), tuple(points), missing, foreground)


def _foreground(task: Task, split: str, index: Tensor, classifiers: Sequence[Classifier], focus: str, ood: str, seed: int,
                device: torch.device | str) -> ForegroundTest | None:
    def answers(classifier: Classifier) -> Callable[[Tensor], Tensor]:
        return lambda images: _logits([classifier], [images], device)[0]

    return foreground_test(task, split, index, [(c.algorithm, c.network) for c in classifiers], [answers(c) for c in classifiers], focus,
                           ood, seed)


def groups_under(task: Task, attributes: dict[str, Tensor], stress: Stress) -> Tensor | None:
    """The rows' groups under a stress; None where it changes a spurious attribute that it does not set."""
    names = {v.name for v in task.spurious}
    if not names or (names - set(stress.do)) & task.dataset.schema.descendants(stress.do):
        return None
    return task.groups({**attributes, **stress.do})


def _sources(task: Task, stress: Stress, split: str, dscm: DSCM | None, seed: int) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Who makes the images of a stress, and these, some at a time."""
    if has_truth(task, stress):
        yield TRUTH, (true_images(task, part, split) for part in stress.parts())
    if dscm is not None:
        yield MODEL, (model_images(dscm, task, part, split, seed, k) for k, part in enumerate(stress.parts()))


def _logits(classifiers: Sequence[Classifier], images: Iterable[Tensor], device: torch.device | str) -> list[Tensor]:
    """Of each classifier, of all images, of which only those at hand are kept."""
    logits: list[list[Tensor]] = [[] for _ in classifiers]
    with torch.no_grad():
        for some in images:
            for part in some.split(_BATCH):
                batch = part.to(device)
                for classifier, parts in zip(classifiers, logits, strict=True):
                    parts.append(classifier.predict(batch).float().cpu())
    return [torch.cat(parts) for parts in logits]


def _point(classifier: Classifier, source: str, stress: Stress, measured: Measured) -> Point:
    return Point(classifier.algorithm, classifier.seed, source, stress.name, stress.attribute, stress.value_label, len(stress), measured)


def _no_answer(images: Tensor) -> Tensor:
    raise NotImplementedError("the majority baseline looks at no image")

"""The quickstart's last question: do classifiers that were trained on confounded images survive interventions?

Where the data set declares a label and spurious attributes, classifiers are trained on it as it is; else on a selection of
its own training images in which a class and another cause go together (:mod:`datasets.confounded`). The model that the
quickstart has trained answers for both: it makes the counterfactuals that one of the algorithms trains on, and the same
stress tests that the true process makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.base import CausalDataset
from datasets.options import DataOptions
from datasets.schema import Graph, SchemaError
from datasets.task import Task, task_of
from dscm.exports.dataset import weights_hash
from dscm.model import DSCM
from experiments.stress.files import save_results
from experiments.stress.results import StressResults
from experiments.stress.robustness import robustness
from experiments.stress.stresses import distinct_rows, draw_stresses
from experiments.training.options import TrainingFlags
from experiments.training.run import rows_for, train_classifiers
from experiments.training.store import FOLDER as CLASSIFIERS
from experiments.training.store import list_trained, load_trained
from mechanisms.training.config import RunOptions

FOLDER, ALGORITHMS = "confounded", ("erm", "groupdro", "cf-augmentation")
_FLAGS = TrainingFlags(network="mlp", hidden=128, steps=400, batch_size=128, optimizer="adam", learning_rate=1e-3, validations=4,
                       validation_rows=500)


@dataclass(frozen=True)
class ClassifierTask:
    """What classifiers are trained on, into which run folder, and how many images they are tested on.

    Attributes:
        label: what they tell apart; ``tied``: the cause that goes with it in training.
    """

    data: DataOptions
    run: Path
    label: str
    tied: str
    count: int


def classifier_task(dataset: CausalDataset, data: DataOptions, run: Path, count: int, seed: int) -> ClassifierTask:
    """The data set itself if it says what is spurious, else a confounded selection of it; what will be asked has been checked.

    Args:
        count: test images, at most.

    Raises:
        SchemaError: where nothing can be confounded; for a label, spurious attributes, environments or shifts that a data set
            declares and that make no task; see :func:`datasets.task.task_of` and :func:`experiments.stress.stresses.draw_stresses`.
    """
    if dataset.label and dataset.spurious:
        return ClassifierTask(data, run, dataset.label, dataset.spurious[0], checked_count(task_of(dataset), count, seed))
    if (pair := pair_of(dataset.graph, dataset)) is None:
        raise SchemaError("no class among the image's causes could be confounded with another cause")
    label, tied = pair
    name = str(Path(data.dataset).resolve()) if data.dataset.endswith(".py") else data.dataset
    option = (f"of={name}", f"options={';'.join(data.option)}", f"predict={label}", f"tie={tied}")
    confounded = replace(data, dataset="confounded", option=option)
    return ClassifierTask(confounded, run / FOLDER, label, tied, checked_count(task_of(confounded.open()), count, seed))


def checked_count(task: Task, count: int, seed: int) -> int:
    """How many of ``count`` images the classifiers can be tested on; that the tests can be drawn is checked."""
    for split in ("train", "valid"):
        task.environments(split)
    count = min(count, len(distinct_rows(task)))
    draw_stresses(task, "test", count, seed)
    return count


def pair_of(graph: Graph, dataset: CausalDataset) -> tuple[str, str] | None:
    """A cause of the image with classes, and another cause that it does not follow from: with a true image, and many effects, first."""
    causes = graph.image_parents
    for label in (v for v in causes if v.discrete and sum(count > 0 for count in v.statistics.counts) > 1):
        others = [v.name for v in causes if v.name != label.name and label.name not in graph.descendants([v.name])]
        if others:
            return label.name, max(others, key=lambda name: (dataset.has_truth([name]), len(graph.descendants([name]))))
    return None


def stress_classifiers(task: ClassifierTask, dscm: DSCM, where: RunOptions, changes: Mapping[str, int], seeds: int, seed: int,
                       device: str) -> tuple[StressResults, dict[str, Path]]:
    """Train a few small classifiers, or take those that are there, and stress them; the report's tables and figures.

    Args:
        where: the run of ``dscm``; tables and figures go to its folder ``robustness``.
        changes: fields of the classifiers' training that replace the usual ones.

    Raises:
        UserError: see :func:`experiments.training.run.train_classifiers` and :func:`experiments.stress.robustness.robustness`.
    """
    flags = replace(_FLAGS, device=device, **changes)
    anew = where.overwrite or outdated(task.run, dscm)
    there = RunOptions(task.run, resume=not anew and (task.run / CLASSIFIERS).is_dir(), overwrite=anew)
    rows = rows_for(task.data.open(), model=where.run, kept_in=task.run, device=device)
    train_classifiers(rows, ALGORITHMS, range(seed, seed + seeds), flags, (), there, task.data)
    results = robustness(run=task.run, algorithms=ALGORITHMS, model=where.run, count=task.count, seed=seed, device=device)
    return results, {path.stem: path for path in save_results(results, where.run / "robustness") if path.suffix == ".png"}


def outdated(run: Path, dscm: DSCM) -> bool:
    """Whether the classifiers that are there were trained on counterfactuals of another model."""
    provenances = [load_trained(run, name, seed).description.get("counterfactuals", "") for name, seed in list_trained(run)]
    return any(text and not text.startswith(weights_hash(dscm)) for text in provenances)

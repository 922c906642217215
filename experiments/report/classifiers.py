"""The quickstart's last question: do classifiers that were trained on confounded images survive interventions?

Where the data set declares a label and spurious attributes, classifiers are trained on it as it is; else on a selection of
its own training images in which a class and another cause go together (:mod:`datasets.confounded`). The model that the
quickstart has trained answers for both: it makes the counterfactuals that one of the algorithms trains on, and the same
stress tests that the true process makes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.base import CausalDataset
from datasets.options import DataOptions
from datasets.schema import Graph, SchemaError
from datasets.task import Task, task_of
from dscm.exports.dataset import weights_hash
from experiments.stress.files import save_results
from experiments.stress.robustness import robustness
from experiments.stress.stresses import distinct_rows, draw_stresses
from experiments.training.options import TrainingFlags
from experiments.training.run import rows_for, train_classifiers
from experiments.training.store import FOLDER as CLASSIFIERS
from experiments.training.store import list_trained, load_trained
from mechanisms.training.config import RunOptions

if TYPE_CHECKING:
    from dscm.model import DSCM
    from experiments.report.options import Options
    from experiments.stress.results import StressResults

FOLDER, ALGORITHMS = "confounded", ("erm", "groupdro", "cf-augmentation")
_FLAGS = TrainingFlags(network="mlp", hidden=128, steps=400, batch_size=128, optimizer="adam", learning_rate=1e-3, validations=4,
                       validation_rows=500)


@dataclass(frozen=True)
class Plan:
    """What classifiers are trained on, into which run folder, and how many images they are tested on."""

    data: DataOptions
    run: Path
    label: str
    tied: str
    count: int


def plan(dataset: CausalDataset, options: Options) -> Plan:
    """The data set itself if it says what is spurious, else a confounded selection of it; what will be asked has been checked.

    Raises:
        SchemaError: where nothing can be confounded; for a label, spurious attributes, environments or shifts that a data set
            declares and that make no task; see :func:`datasets.task.task_of` and :func:`experiments.stress.stresses.draw_stresses`.
    """
    if dataset.label and dataset.spurious:
        return Plan(options.data, options.folder, dataset.label, dataset.spurious[0], _count(task_of(dataset), options))
    if (pair := pair_of(dataset.graph, dataset)) is None:
        raise SchemaError("no class among the image's causes could be confounded with another cause")
    label, tied = pair
    given = options.data
    name = str(Path(given.dataset).resolve()) if given.dataset.endswith(".py") else given.dataset
    option = (f"of={name}", f"options={';'.join(given.option)}", f"predict={label}", f"tie={tied}")
    data = replace(given, dataset="confounded", option=option)
    return Plan(data, options.folder / FOLDER, label, tied, _count(task_of(data.open()), options))


def _count(task: Task, options: Options) -> int:
    """How many images the classifiers are tested on; that the tests can be drawn is checked."""
    for split in ("train", "valid"):
        task.environments(split)
    count = min(16 if options.smoke else 256, len(distinct_rows(task)))
    draw_stresses(task, "test", count, options.seed)
    return count


def pair_of(graph: Graph, dataset: CausalDataset) -> tuple[str, str] | None:
    """A cause of the image with classes, and another cause that it does not follow from: with a true image, and many effects, first."""
    causes = graph.image_parents
    for label in (v for v in causes if v.discrete and sum(count > 0 for count in v.statistics.counts) > 1):
        others = [v.name for v in causes if v.name != label.name and label.name not in graph.descendants([v.name])]
        if others:
            return label.name, max(others, key=lambda name: (dataset.has_truth([name]), len(graph.descendants([name]))))
    return None


def stress_classifiers(chosen: Plan, dscm: DSCM, options: Options) -> tuple[StressResults, dict[str, Path]]:
    """Train a few small classifiers, or take those that are there, and stress them; the report's tables and figures.

    Raises:
        UserError: see :func:`experiments.training.run.train_classifiers` and :func:`experiments.stress.robustness.robustness`.
    """
    flags = replace(_FLAGS, device=options.device, **({"steps": 4, "validations": 1} if options.smoke else {}))
    anew = options.overwrite or outdated(chosen.run, dscm)
    where = RunOptions(chosen.run, resume=not anew and (chosen.run / CLASSIFIERS).is_dir(), overwrite=anew)
    rows = rows_for(chosen.data.open(), model=options.folder, kept_in=chosen.run, device=options.device)
    seeds = range(options.seed, options.seed + (1 if options.smoke else 3))
    train_classifiers(rows, ALGORITHMS, seeds, flags, (), where, chosen.data)
    results = robustness(run=chosen.run, algorithms=ALGORITHMS, model=options.folder, count=chosen.count, seed=options.seed,
                         device=options.device)
    return results, {path.stem: path for path in save_results(results, options.folder / "robustness") if path.suffix == ".png"}


def outdated(run: Path, dscm: DSCM) -> bool:
    """Whether the classifiers that are there were trained on counterfactuals of another model."""
    made = [load_trained(run, name, seed).description.get("counterfactuals", "") for name, seed in list_trained(run)]
    return any(text and not text.startswith(weights_hash(dscm)) for text in made)

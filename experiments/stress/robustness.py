"""A stress test of named classifiers, from a run folder or files to its figures, tables and files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.options import DataOptions
from dscm.evaluation.run import check_writable
from experiments.networks.own import AUTO
from experiments.stress.classifiers import find_model, left_out, load_classifiers, load_model, open_classifiers, task_for, trained_on_less
from experiments.stress.files import save_results
from experiments.stress.results import StressResults
from experiments.stress.run import Classifier, stress_test
from experiments.stress.stresses import distinct_rows
from experiments.stress.text import as_markdown
from experiments.training.rules import MEANING
from experiments.training.store import list_trained
from mechanisms.runs.folder import dataset_of
from mechanisms.training.devices import find_device

COUNT = 1000  # images, where there are so many
LAST = "last"


def robustness(*, data: DataOptions = DataOptions(), run: Path | None = None, algorithms: Sequence[str] = (), rule: str = LAST,
               own: Sequence[tuple[str, Path | None, str]] = (), outputs: str = AUTO, model: Path | None = None, label: str = "",
               spurious: Sequence[str] = (), split: str = "test", count: int | None = None, focus: str = "saliency", ood: str = "mean",
               seed: int = 0, device: str = "auto") -> StressResults:
    """Stress-test classifiers of a run folder, and a user's own; nothing is written.

    Args:
        data: the data set where there is no ``run``, whose own it is else.
        run, algorithms, rule: whose classifiers are tested, of which algorithms (empty: all), and which of their weights. Those of a run
            are left out where a user's own are tested and nothing is said about the run's, and it has none.
        own, outputs: see :func:`experiments.stress.classifiers.open_classifiers`.
        model: run folder of the model that makes the same tests; that of ``run`` without it, if there is one.
        label, spurious: see :func:`experiments.stress.classifiers.task_for`.
        split, count, focus, ood, seed: see :func:`experiments.stress.run.stress_test`; 1000 images, or all, without a count.

    Raises:
        UserError: for a run, model, classifier or data set that cannot be used.
    """
    place = find_device(device)
    dataset = data.open() if run is None else dataset_of(run)
    wanted = bool(algorithms or rule != LAST or not own)
    of_run = run is not None and (wanted or bool(list_trained(run)))
    trained = load_classifiers(run, algorithms, rule, place) if of_run else []
    task = task_for(dataset, run, trained, label, spurious)
    rules = {t.algorithm: f"{rule}: {MEANING[rule]}" for t in trained}
    opened = open_classifiers(own, task, outputs, place, list(rules))
    rules |= {classifier.algorithm: "as given" for classifier in opened}
    folder = find_model(model, run)
    dscm = None if folder is None else load_model(folder, dataset, place)
    count = min(COUNT, len(distinct_rows(task, split))) if count is None else count
    classifiers = [*(Classifier(t.algorithm, t.seed, t.predict, t.network) for t in trained), *opened]
    stressed = stress_test(task, classifiers, dscm, split, count, seed, place, focus, ood)
    about = {"run": None if run is None else str(run), "model": None if folder is None else str(folder), "rule": rule if trained else None}
    return StressResults(stressed, rules, about, [*trained_on_less(trained), *(left_out(run, algorithms) if of_run else [])])


def robustness_into(folder: Path, **asked: Any) -> None:
    """:func:`robustness` of what is asked, printed, and written into ``folder``."""
    check_writable(folder / "robustness.md")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values beyond training's come from the data set's own shifts
        results = robustness(**asked)
    print(as_markdown(results), flush=True)
    print("\nwrote " + ", ".join(map(str, save_results(results, folder))))

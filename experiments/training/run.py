"""Training classifiers by several algorithms, over several seeds, into one run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from datasets.base import CausalDataset
from datasets.options import DataOptions
from datasets.task import task_of
from dscm.exports.dataset import weights_hash
from dscm.model import DSCM
from experiments.algorithms.registry import ALGORITHMS, algorithm
from experiments.training.counterfactuals import check_model, training_counterfactuals
from experiments.training.field_help import field_help
from experiments.training.options import TrainingFlags
from experiments.training.plan import resolve
from experiments.training.results import save_tsv, table
from experiments.training.rows import Rows
from experiments.training.stacked import learn_stacked
from experiments.training.store import FOLDER
from experiments.training.study import Study
from experiments.training.trainer import Trainer
from mechanisms.runs.files import RunError
from mechanisms.runs.folder import claim
from mechanisms.training.config import RunOptions
from mechanisms.training.devices import find_device, make_accelerator


def algorithms(named: Sequence[str], given: Mapping[str, Any] | None = None) -> list[str]:
    """Registered names of the algorithms that are named, or of ``all``, each once; ERM first, since others begin with it.

    Args:
        given: settings by flags of their own, ``{setting: value}``, of which some algorithm must have each.

    Raises:
        RunError: for none, or an unknown one; for a setting that none of them has.
    """
    if not named:
        raise RunError(f"--algorithm names none; valid are {', '.join(ALGORITHMS)}, comma-separated, or all")
    names = list(ALGORITHMS) if list(named) == ["all"] else [algorithm(name).name for name in named]
    for setting, value in (given or {}).items():
        having = [name for name, kind in ALGORITHMS.items() if setting in {f.name for f in fields(kind.settings)}]
        if not set(having) & set(names):
            raise RunError(f"--{setting.replace('_', '-')} {value}: none of {', '.join(names)} has such a setting; add "
                           f"--algorithm {', '.join(having)}")
    return sorted(names, key=lambda name: name != "erm")


def describe(dataset: CausalDataset, names: Sequence[str], flags: TrainingFlags = TrainingFlags(), settings: Sequence[str] = ()) -> str:
    """What the algorithms assume, need and can be set to, with the values that would hold on this data set; see :func:`.plan.resolve`."""
    lines, rows = [], len(dataset.split("train"))
    for name in names:
        plan = resolve(name, dataset, flags, settings)
        needed = ", ".join(sorted(plan.needs)) or "nothing but labels"
        lines += [f"{name}: {plan.kind.title}", f"  assumes that {plan.kind.assumes}", f"  needs {needed}",
                  f"  here: {plan.in_words(rows)}"]
        values, texts = asdict(plan.settings), field_help(plan.kind.settings)
        lines += [f"  --set {name}.{key}={value}: {texts[key]}" for key, value in values.items()]
    return "\n".join(lines)


def rows_for(dataset: CausalDataset, label: str = "", spurious: Sequence[str] = (), environment: str = "", *, data_fraction: float = 1.0,
             box_noise: float | None = None, model: Path | None = None, truth: bool = False, per_row: int = 1, kept_in: Path | None = None,
             device: str = "auto") -> Rows:
    """The rows of a task on this data set, with what makes counterfactuals of them, if anything is named.

    Args:
        label, spurious, environment: see :func:`datasets.task.task_of`; the data set's own where empty.
        data_fraction, box_noise: see :class:`experiments.training.study.Study`.
        model: run folder of the model that makes the counterfactuals.
        truth: whether the true process makes them, where no model does.
        per_row: counterfactuals of each row.
        kept_in: run folder in which they are kept; None to make them anew.
        device: on which the model makes them.

    Raises:
        UserError: for a task that makes no sense, or a model of other data.
    """
    task, study = task_of(dataset, label, tuple(spurious) or None, environment), Study(data_fraction, box_noise)
    if model is None and not truth:
        return Rows(task, study=study)
    dscm = None if model is None else DSCM.load(model, find_device(device))
    if dscm is not None:
        check_model(model, dscm, dataset)
    made_by = f"{'the true process' if dscm is None else weights_hash(dscm)}, {per_row}"
    folder = None if kept_in is None else kept_in / FOLDER

    def counterfactuals(relabel: bool) -> Tensor:
        return training_counterfactuals(task, dscm, per_row, folder=folder, relabel=relabel)

    return Rows(task, lambda: counterfactuals(False), made_by, study, lambda: counterfactuals(True))


def train_classifiers(rows: Rows, names: Sequence[str], seeds: Sequence[int], flags: TrainingFlags, settings: Sequence[str],
                      run: RunOptions, data: DataOptions, vectorize: bool = True) -> list[dict[str, Any]]:
    """Train into ``run/classifiers``; rows of ``results.jsonl``, of these algorithms and seeds.

    A row: ``algorithm``, ``seed``, ``steps``, ``seconds`` (of all its stages, masks and features included, without an ERM that
    it begins with, which has a row of its own), ``rows``
    of the validation split that were looked at, ``majority`` (accuracy of always naming their commonest class), and under
    ``rules`` for each selection rule its ``step``, validation ``accuracy``, ``worst_group``, ``loss`` and, where the data set
    has shifts, the accuracy when ``shifted``. All of the run's are in ``results.tsv`` too, see :mod:`experiments.training.results`.

    Args:
        names: as registered, see :func:`algorithms`.
        flags, settings: see :func:`experiments.training.plan.resolve`.
        data: by which the data set of the rows was opened; recorded in the run folder.
        vectorize: whether several seeds may be trained at once, see :mod:`experiments.training.stacked`.

    Raises:
        UserError: for what the data or the command lack; see :meth:`experiments.training.rows.Rows.check`,
            :func:`experiments.training.plan.resolve` and :func:`mechanisms.training.loop.fit`. Nothing has been trained then.
    """
    dataset = rows.task.dataset

    def trainer(name: str, seed: int) -> Trainer:
        return Trainer(rows, resolve(name, dataset, flags, settings, seed), run,
                       lambda other: resolve(other, dataset, flags, settings, seed))

    trainers = {name: [trainer(name, seed) for seed in seeds] for name in names}
    for first, *_ in trainers.values():
        first.check()
        make_accelerator(first.config.device, first.config.precision)  # a device that is not there is known at once
    claim(run.run, dataset, data)
    results = []
    for name, trainers_of_seeds in trainers.items():
        if PartialState().is_main_process:
            print(f"{name}: {_summary(trainers_of_seeds[0])}", flush=True)
        if vectorize:
            learn_stacked(trainers_of_seeds)
        for one in trainers_of_seeds:
            one.learn()
            if one.row:
                results.append(one.row)
    if PartialState().is_main_process:
        save_tsv(run.run)
    return results


def _summary(trainer: Trainer) -> str:
    """What an algorithm is trained with, and how the rows are studied."""
    study = trainer.rows.study.describe("masks" in trainer.plan.needs)
    given = [f", {key.replace('_', '-')} {value:g} (flag)" for key, value in study.items()]
    return f"{trainer.plan.in_words(len(trainer.rows.train))}{''.join(given)}"


def print_results(results: Sequence[Mapping[str, Any]]) -> None:
    """Their table, once for all processes."""
    if PartialState().is_main_process:
        print(table(results))

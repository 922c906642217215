"""``python -m experiments.train``: fits classifiers by one or several algorithms, over several seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets.words import listed
from experiments.training.options import SETTING_FLAGS, Options
from mechanisms.runs.command import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.base import CausalDataset
    from datasets.task import Task
    from experiments.training.rows import Rows
    from experiments.training.trainer import Trainer


def task_for(dataset: CausalDataset, options: Options) -> Task:
    """The task that the options ask for on this data set."""
    from datasets.task import task_of

    spurious = tuple(listed(options.spurious, "--spurious"))
    return task_of(dataset, options.label, spurious or None, options.environment)


def algorithms(options: Options) -> list[str]:
    """Names that ``--algorithm`` lists, each once; ERM first, since others begin with it.

    Raises:
        RunError: for an unknown one; for a flag that is a setting of none of them.
    """
    from dataclasses import fields

    from experiments.algorithms.registry import ALGORITHMS, algorithm
    from mechanisms.runs.files import RunError

    named = listed(options.algorithm, "--algorithm")
    if not named:
        raise RunError(f"--algorithm names none; valid are {', '.join(ALGORITHMS)}, comma-separated, or all")
    names = list(ALGORITHMS) if named == ["all"] else [algorithm(name).name for name in named]
    for flag in SETTING_FLAGS:
        if getattr(options, flag) is not None and not any(flag in {f.name for f in fields(ALGORITHMS[name].settings)} for name in names):
            having = ", ".join(name for name, kind in ALGORITHMS.items() if flag in {f.name for f in fields(kind.settings)})
            raise RunError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: none of {', '.join(names)} has such a setting; add "
                           f"--algorithm {having}")
    return sorted(names, key=lambda name: name != "erm")


def train_classifiers(dataset: CausalDataset, options: Options) -> list[dict[str, Any]]:
    """Train what is asked for into ``run/classifiers``; rows of ``results.jsonl``, of the algorithms and seeds that were asked for.

    A row: ``algorithm``, ``seed``, ``steps``, ``seconds`` (of all its stages, masks and features included, without an ERM that
    it begins with, which has a row of its own), ``rows``
    of the validation split that were looked at, ``majority`` (accuracy of always naming their commonest class), and under
    ``rules`` for each selection rule its ``step``, validation ``accuracy``, ``worst_group``, ``loss`` and, where the data set
    has shifts, the accuracy when ``shifted``. All of the run's are in ``results.tsv`` too, see :mod:`experiments.training.results`.

    Raises:
        UserError: for what the data or the command lack; see :meth:`experiments.training.rows.Rows.check`,
            :func:`experiments.training.plan.resolve` and :func:`mechanisms.training.loop.fit`. Nothing has been trained then.
    """
    from accelerate import PartialState

    from experiments.training.plan import resolve
    from experiments.training.results import save_tsv
    from experiments.training.stacked import learn_stacked
    from experiments.training.trainer import Trainer
    from mechanisms.runs.folder import claim
    from mechanisms.training.devices import make_accelerator

    options.check()
    rows = rows_for(task_for(dataset, options), options)

    def trainer(name: str, seed: int) -> Trainer:
        return Trainer(rows, resolve(name, dataset, options.training, options.settings, seed), options.run, lambda other: resolve(
            other, dataset, options.training, options.settings, seed))

    seeds = range(options.seed, options.seed + options.seeds)
    trainers = {name: [trainer(name, seed) for seed in seeds] for name in algorithms(options)}
    for first, *_ in trainers.values():
        first.check()
        make_accelerator(first.config.device, first.config.precision)  # a device that is not there is known at once
    claim(options.run.run, dataset, options.data)
    results = []
    for name, ours in trainers.items():
        if PartialState().is_main_process:
            study = rows.study.describe("masks" in ours[0].plan.needs)
            given = [f", {key.replace('_', '-')} {value:g} (flag)" for key, value in study.items()]
            print(f"{name}: {ours[0].plan.told(len(rows.train))}{''.join(given)}", flush=True)
        if options.vectorize:
            learn_stacked(ours)
        for one in ours:
            one.learn()
            if one.row:
                results.append(one.row)
    if PartialState().is_main_process:
        save_tsv(options.run.run)
    return results


def rows_for(task: Task, options: Options) -> Rows:
    """The task's rows, with what makes counterfactuals of them, if anything was named."""
    from experiments.training.rows import Rows
    from experiments.training.store import FOLDER
    from experiments.training.study import Study

    study = Study(options.data_fraction, options.box_noise)
    if options.model is None and not options.truth:
        return Rows(task, study=study)

    from dscm.exports.dataset import weights_hash
    from dscm.model import DSCM
    from experiments.training.counterfactuals import check_model, training_counterfactuals
    from mechanisms.training.devices import find_device

    dscm = None if options.model is None else DSCM.load(options.model, find_device(options.training.device))
    if dscm is not None:
        check_model(options.model, dscm, task.dataset)
    made_by = f"{'the true process' if dscm is None else weights_hash(dscm)}, {options.counterfactuals}"

    def made(relabel: bool) -> Tensor:
        return training_counterfactuals(task, dscm, options.counterfactuals, folder=options.run.run / FOLDER, relabel=relabel)

    return Rows(task, lambda: made(False), made_by, study, lambda: made(True))


def describe(dataset: CausalDataset, options: Options) -> str:
    """What the algorithms assume, need and can be set to, with the values that would hold on this data set."""
    from dataclasses import asdict

    from experiments.algorithms.registry import algorithm
    from experiments.training.field_help import field_help
    from experiments.training.plan import resolve

    lines, rows = [], len(dataset.split("train"))
    for name in algorithms(options):
        kind, plan = algorithm(name), resolve(name, dataset, options.training, options.settings)
        needed = ", ".join(sorted(plan.needs)) or "nothing but labels"
        lines += [f"{name}: {kind.title}", f"  assumes that {kind.assumes}", f"  needs {needed}", f"  here: {plan.told(rows)}"]
        values, texts = asdict(plan.settings), field_help(kind.settings)
        lines += [f"  --set {name}.{key}={value}: {texts[key]}" for key, value in values.items()]
    return "\n".join(lines)


def main(options: Options) -> None:
    from accelerate import PartialState

    from experiments.training.results import table

    dataset = options.data.open()
    if options.describe:
        print(describe(dataset, options))
        return
    rows = train_classifiers(dataset, options)
    if PartialState().is_main_process:
        print(table(rows))


if __name__ == "__main__":
    run_command(Options, main)

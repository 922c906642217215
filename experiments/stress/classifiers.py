"""What a stress test is about: classifiers of a run folder, a user's own, their task, and the model that makes images too."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.base import CausalDataset
from datasets.schema import SchemaError
from datasets.task import Task, task_of
from dscm.model import DSCM
from experiments.algorithms.registry import spelled
from experiments.networks.own import AUTO, open_own
from experiments.stress.run import MAJORITY, Classifier
from experiments.training.counterfactuals import check_model
from experiments.training.store import Trained, list_trained, load_trained, unfinished
from mechanisms.image.registry import FOLDER as IMAGE
from mechanisms.runs.files import RunError
from mechanisms.training.state import WEIGHTS
from pgm.options import FOLDER as ATTRIBUTES


def load_classifiers(run: Path, algorithms: Sequence[str], rule: str, device: str | torch.device) -> list[Trained]:
    """The classifiers of a run folder, of the algorithms named or of all.

    Raises:
        RunError: without any; for an algorithm that the run has not.
    """
    finished, wanted = list_trained(run), [spelled(name) for name in algorithms]
    there = list(dict.fromkeys(name for name, _ in finished))
    if not finished:
        begun = "".join(f". {line}" for line in left_out(run, wanted))
        raise RunError(f"{run} has no classifiers yet; train some: python -m experiments.train --run {shlex.quote(str(run))} --algorithm "
                       f"erm,irm{begun}")
    if unknown := [name for name in wanted if name not in there]:
        begun = "".join(f". {line}" for line in left_out(run, unknown))
        raise RunError(f"{run} has no classifier by {unknown[0]}; it has {', '.join(there)}{begun}")
    return [load_trained(run, name, seed, rule, device) for name, seed in finished if not wanted or name in wanted]


def left_out(run: Path, algorithms: Sequence[str]) -> list[str]:
    """Which classifiers, of the algorithms named or of all, were begun and cannot be tested, a sentence each."""
    wanted = [spelled(name) for name in algorithms]
    return [f"Left out: {name} (seed {seed}) {why}." for name, seed, why in unfinished(run) if not wanted or name in wanted]


def trained_on_less(trained: Sequence[Trained]) -> list[str]:
    """Which classifiers were trained on less than there is, see :mod:`experiments.training.study`, a sentence each."""
    algorithms: dict[str, dict[str, None]] = {}
    for classifier in trained:
        for key in ("data_fraction", "box_noise"):
            if key in classifier.description:
                algorithms.setdefault(f"--{key.replace('_', '-')} {classifier.description[key]:g}", {})[classifier.algorithm] = None
    return [f"Trained with {flag}: {', '.join(names)}." for flag, names in algorithms.items()]


def open_classifiers(own: Sequence[tuple[str, Path | None, str]], task: Task, outputs: str = AUTO, device: str | torch.device = "cpu",
                     taken: Sequence[str] = ()) -> list[Classifier]:
    """A user's own classifiers.

    Args:
        own: specification, weights and name of each, see :func:`experiments.networks.own.open_own`.
        taken: names that others have.

    Raises:
        RunError: see :func:`experiments.networks.own.open_own`.
        SchemaError: for two of the same name.
    """
    classifiers: list[Classifier] = []
    for spec, weights, name in own:
        opened = open_own(spec, task, weights, name, device, outputs)
        if opened.name in (*taken, MAJORITY, *(c.algorithm for c in classifiers)):
            raise SchemaError(f"two classifiers are called {opened.name!r}; give each its own --name")
        classifiers.append(Classifier(opened.name, None, opened.predict, opened.module()))
    return classifiers


def task_for(dataset: CausalDataset, run: Path | None, trained: Sequence[Trained], label: str = "", spurious: Sequence[str] = ()) -> Task:
    """The task that the classifiers of a run were trained for, with other spurious attributes if some are named.

    Raises:
        RunError: for classifiers of different labels, or of another one than ``label``; for classifiers of different spurious attributes,
            where none are named.
    """
    tasks = [t.description["task"] for t in trained]
    labels = list(dict.fromkeys([t["label"] for t in tasks] + [label] * bool(label)))
    if len(labels) > 1:
        raise RunError(f"the classifiers of {run} and the flags are about different labels: {', '.join(labels)}. Name the ones to "
                       "compare: --algorithm, or leave --label out")
    named = tuple(spurious) or None
    if named is None and tasks:
        different = list(dict.fromkeys(tuple(t["spurious"]) for t in tasks))
        if len(different) > 1:
            raise RunError(f"the classifiers of {run} were trained with different spurious attributes "
                           f"({'; '.join(', '.join(names) for names in different)}); say which to intervene on: --spurious NAME[,NAME]")
        named = different[0]
    return task_of(dataset, labels[0] if labels else "", named)


def find_model(model: Path | None, run: Path | None) -> Path | None:
    """The run folder of the model that makes stress tests: the one that is named, or that of the classifiers if it holds one."""
    if model is None and run is not None and all((run / part / WEIGHTS).exists() for part in (ATTRIBUTES, IMAGE)):
        return run
    return model


def load_model(folder: Path, dataset: CausalDataset, device: str | torch.device) -> DSCM:
    """The model of a run folder.

    Raises:
        RunError: for a model of another data set, or of other images.
    """
    dscm = DSCM.load(folder, device)
    check_model(folder, dscm, dataset)
    return dscm

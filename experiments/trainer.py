"""One training of one classifier: an algorithm, a seed, a folder. All fitting is :func:`mechanisms.training.fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from datasets.base import Split
from datasets.schema import SchemaError
from datasets.task import Task
from experiments.algorithms.base import Algorithm, Sizes
from experiments.networks import Network, build_network
from experiments.resolve import Plan
from experiments.selection import criteria, selection_split, shifts_of
from mechanisms.bookkeeping import CHECKPOINT, WEIGHTS, Position
from mechanisms.checkpoint import RunError, load
from mechanisms.noise import seeded
from mechanisms.options import RunOptions, TrainingConfig
from mechanisms.training import fit, global_batch

FOLDER = "classifiers"
Source = Callable[[], Tensor]


class Rows:
    """The rows that a task's classifiers are trained and selected on; shared by all algorithms and seeds of a command.

    Args:
        source: makes the counterfactuals of the training split, uint8 ``(N, M, C, H, W)``, when they are first asked for.
        made_by: what makes them, in a word or two; part of what tells trainings apart.
    """

    def __init__(self, task: Task, source: Source | None = None, made_by: str = "") -> None:
        self.task, self.source, self.made_by = task, source, made_by
        self._selection: dict[int, Split] = {}

    @cached_property
    def train(self) -> Split:
        return self.task.split("train")

    @cached_property
    def counterfactuals(self) -> Tensor | None:
        """Of the training split; None where nothing makes them."""
        return None if self.source is None else self.source()

    def selection(self, count: int) -> Split:
        """See :func:`experiments.selection.selection_split`."""
        if count not in self._selection:
            self._selection[count] = selection_split(self.task, count)
        return self._selection[count]

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(self.task.classes, self.task.environment_count, len(self.task.group_names), len(shifts_of(self.task)))

    def check(self, kind: type[Algorithm], network: type[Network]) -> None:
        """Raises UserError where the data or the network lack what an algorithm needs, before anything is trained."""
        name = f"--algorithm {kind.name}"
        if "environments" in kind.needs:
            self.task.check_environments(name)
        if "groups" in kind.needs:
            self.task.check_groups(name)
        if "counterfactuals" in kind.needs and self.source is None:
            raise RunError(f"{name} trains on counterfactuals, but nothing makes them: give --model RUN (a trained model), or --truth "
                           "where the data set knows its process")
        if "camera" in kind.needs and not network.cam_layer:
            raise RunError(f"{name} draws class-activation maps, but --network {network.name} has no layer of maps; take --network "
                           "smallcnn")


class Trainer:
    """What an algorithm trains with.

    Args:
        plan: of the algorithm, see :func:`experiments.resolve.resolve`; its training's seed is this training's.
        resolve: plan of another algorithm by name, for :meth:`base`.
        options: ``run`` is the run folder that all classifiers share.

    Attributes:
        train: the training split; with the column ``counterfactual`` for algorithms that need it.
        valid: what selection looks at, see :func:`experiments.selection.selection_split`.
        folder: ``<run>/classifiers/<algorithm>/seed-<n>``; a stage has a folder of its own in it.
        judged: the selection split of the last stage, once that is trained.
        generator: for draws that are none of the loop's, seeded; the same at every use of a fresh trainer.
    """

    def __init__(self, rows: Rows, plan: Plan, options: RunOptions, resolve: Callable[[str], Plan]) -> None:
        self.rows, self.plan, self.options, self.resolve = rows, plan, options, resolve
        self.task, self.settings, self.config, self.seed = rows.task, plan.settings, plan.training, plan.training.seed
        self.folder = Path(options.run) / FOLDER / plan.kind.name / f"seed-{self.seed}"
        self.generator = seeded(self.seed, 7)
        self.judged: Split | None = None

    def check(self) -> None:
        """Raises UserError for what cannot be trained, before anything is: see :meth:`Rows.check`; averages with batch norm."""
        network, ema = self.network(), self.config.ema
        self.rows.check(self.plan.kind, type(network))
        if ema and any(True for _ in network.buffers()):
            raise RunError(f"--ema {ema} averages weights, but not the statistics of --network {network.name}'s batch norm, which then are "
                           "of other weights; take --ema 0")

    # ------------------------------------------------------------------------------------------------ data
    @cached_property
    def train(self) -> Split:
        rows = self.rows.train
        return rows if self.counterfactuals is None else with_columns(rows, counterfactual=self.counterfactuals)

    @cached_property
    def valid(self) -> Split:
        return self.rows.selection(self.config.validation_rows)

    @cached_property
    def counterfactuals(self) -> Tensor | None:
        """``(N, M, C, H, W)`` uint8 of the training split; None for algorithms that need none."""
        return self.rows.counterfactuals if "counterfactuals" in self.plan.kind.needs else None

    # ------------------------------------------------------------------------------------------------ models
    def network(self) -> Network:
        """Freshly initialised; a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_network(self.plan.classifier.network, self.task.dataset.schema.image.shape, self.rows.sizes.classes,
                                 self.plan.classifier.hidden)

    def build(self, network: Network | None = None) -> Algorithm:
        """The plan's algorithm around ``network``; a fresh one if None."""
        return self.plan.kind(self.network() if network is None else network, self.rows.sizes, self.settings, self.plan.classifier.l2)

    def base(self) -> Algorithm:
        """ERM of the same seed, trained once into ``<run>/classifiers/erm`` and shared by all that begin with it."""
        return Trainer(self.rows, self.resolve("erm"), self.options, self.resolve).learn()

    def learn(self) -> Algorithm:
        """The trained algorithm of the plan."""
        return self.plan.kind.learn(self)

    # ------------------------------------------------------------------------------------------------ fitting
    def updates(self, config: TrainingConfig, train: Split) -> int | None:
        """How many updates a training has; None where its budget is a time."""
        per_epoch = len(train) // global_batch(config, len(train), PartialState().num_processes)
        return config.steps or (math.ceil(config.epochs * per_epoch) if config.epochs else None)

    def fit(self, model: Algorithm, stage: str = "", train: Split | None = None, valid: Split | None = None, **changes: Any) -> Algorithm:
        """Train ``model`` in place and return it, in eval mode, with the weights of the end; what is finished is only read.

        Args:
            stage: of an algorithm with several; empty for the last one, whose folder is the training's own.
            train: instead of the training split.
            valid: instead of the selection split; with the same columns.
            changes: to the training configuration; a budget replaces the one there is.

        Raises:
            RunError: see :func:`mechanisms.training.fit`.
        """
        train, valid = train or self.train, valid or self.valid
        if any(budget in changes for budget in ("epochs", "steps", "minutes")):
            changes = {"epochs": None, "steps": None, "minutes": None, **changes}
        config = replace(self.config, **changes)
        config = replace(config, validation_rows=len(valid))
        self.judged = self.judged if stage else valid
        folder = self.folder / stage if stage else self.folder
        options = replace(self.options, resume=self.options.resume or self.finished(folder, config, train))
        fit(model, train, valid, config, folder, self.describe(model, stage), options, kept=model.network,
            rules=criteria(valid, self.rows.sizes), restarts=model.restarts(self.updates(config, train)))
        return model.eval()

    def describe(self, model: Algorithm, stage: str = "") -> dict[str, Any]:
        """Plain values that tell this training from others; stored with the weights."""
        task = {"label": self.task.label.name, "spurious": [v.name for v in self.task.spurious], "environment": self.task.environment,
                "classes_of_label": list(self.task.label.classes)}
        made = {"counterfactuals": self.rows.made_by} if "counterfactuals" in model.needs else {}
        return {**model.describe(), "task": task, "stage": stage, **made}

    def finished(self, folder: Path, config: TrainingConfig, train: Split) -> bool:
        """Whether the folder holds a training whose budget is spent."""
        if not (folder / CHECKPOINT).exists() or not (folder / WEIGHTS).exists() or self.options.overwrite:
            return False
        at, total = Position(**load(folder / CHECKPOINT, "training")["position"]), self.updates(config, train)
        return at.gives_up(config.patience) or (at.step >= total if total else at.elapsed >= 60 * config.minutes)


def with_columns(split: Split, **columns: Tensor) -> Split:
    """The same rows with further columns, ``(N, …)`` each.

    Raises:
        SchemaError: for a column of another length.
    """
    for name, values in columns.items():
        if len(values) != len(split):
            raise SchemaError(f"column {name!r} has {len(values)} values for {len(split)} rows")
    return Split(split.name, split.images, {**split.attributes, **columns})

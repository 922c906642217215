"""One training of one classifier: an algorithm, a seed, a folder. All fitting is :func:`mechanisms.training.fit`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from datasets.base import LazyImages, Split
from datasets.schema import SchemaError
from datasets.task import Task
from experiments.algorithms.base import Algorithm, Sizes
from experiments.classifier import folder_of, forget, record, results
from experiments.networks import Network, build_network
from experiments.resolve import Plan
from experiments.results import row_of
from experiments.selection import criteria, selection_split, shifts_of
from mechanisms.bookkeeping import CHECKPOINT, METRICS
from mechanisms.checkpoint import MetricsLog, RunError, weights_fingerprint
from mechanisms.options import RunOptions, TrainingConfig
from mechanisms.resuming import difference, finished_training
from mechanisms.training import fit, updates_of

Source = Callable[[], Tensor]


class Rows:
    """The rows that a task's classifiers are trained and selected on; shared by all algorithms and seeds of a command.

    Args:
        source: makes the counterfactuals of the training split, uint8 ``(N, M, C, H, W)``, when they are first asked for.
        made_by: what makes them, in a word or two; part of what tells trainings apart.

    Attributes:
        trained: folders of what was trained since, which is not to be overwritten again.
    """

    def __init__(self, task: Task, source: Source | None = None, made_by: str = "") -> None:
        self.task, self.source, self.made_by = task, source, made_by
        self.trained: set[Path] = set()
        self._selection: dict[int, Split] = {}
        self._warned: set[str] = set()

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
            self.warn_of_empty_groups(kind.grouped, name)
        if "masks" in kind.needs:
            self.task.check_masks(name)
        if "counterfactuals" in kind.needs and self.source is None:
            raise RunError(f"{name} trains on counterfactuals, but nothing makes them: give --model RUN (a trained model), or --truth "
                           "where the data set knows its process")
        if "camera" in kind.needs and not network.cam_layer:
            raise RunError(f"{name} draws class-activation maps, but --network {network.name} has no layer of maps; take --network "
                           "smallcnn")

    def warn_of_empty_groups(self, split: str, needed_by: str) -> None:
        """Say once which groups the split has no rows of: nothing can be learned about these combinations from it."""
        counts = torch.bincount(self.task.split(split).attributes["group"], minlength=len(self.task.group_names))
        if (empty := (counts == 0).nonzero().flatten().tolist()) and split not in self._warned and PartialState().is_main_process:
            named = "; ".join(self.task.group_names[g] for g in empty)
            print(f"warning: {needed_by} and others that balance groups learn nothing of those that the {split} split of "
                  f"{self.task.dataset.title} has no rows of: {named}", file=sys.stderr)
            self._warned.add(split)


class Trainer:
    """What an algorithm trains with.

    With several processes (``torchrun``), batch norm takes its statistics over each process's own rows of a batch, and keeps
    those of the first process: networks with batch norm are then not quite what one process would train.

    Args:
        plan: of the algorithm, see :func:`experiments.resolve.resolve`; its training's seed is this training's.
        resolve: plan of another algorithm by name, for :meth:`base`.
        options: ``run`` is the run folder that all classifiers share.

    Attributes:
        train: the training split; with the column ``counterfactual`` for algorithms that need it.
        valid: what selection looks at, see :func:`experiments.selection.selection_split`.
        folder: ``<run>/classifiers/<algorithm>/seed-<n>``; a stage has a folder of its own in it.
        judged: the selection split of the last stage, once that is trained.
        seconds: that training took, see :meth:`learn`.
        row: of ``results.jsonl``, once all is trained; on the main process.
    """

    def __init__(self, rows: Rows, plan: Plan, options: RunOptions, resolve: Callable[[str], Plan]) -> None:
        self.rows, self.plan, self.options, self.resolve = rows, plan, options, resolve
        self.task, self.settings, self.config, self.seed = rows.task, plan.settings, plan.training, plan.training.seed
        self.folder = folder_of(options.run, plan.kind.name, self.seed)
        self.judged: Split | None = None
        self.seconds, self.row = 0.0, {}
        self._base, self._only_read, self._elsewhere = "", True, 0.0

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
        columns = {} if self.counterfactuals is None else {"counterfactual": self.counterfactuals}
        if "masks" in self.plan.kind.needs:
            columns["mask"] = self.task.masks("train")
        return with_columns(self.rows.train, **columns)

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
        """The plan's algorithm around ``network``, whose weights it remembers; around a fresh one if None."""
        kind = self.plan.kind
        model = kind(self.network() if network is None else network, self.rows.sizes, self.settings, self.plan.classifier.l2)
        model.begun_from = "" if network is None else weights_fingerprint(network)
        return model

    def base(self) -> Algorithm:
        """ERM of the same seed, trained once into ``<run>/classifiers/erm`` and shared by all that begin with it.

        One of the same plan that is there is not overwritten: what others began with would be gone.
        """
        began = time.perf_counter()
        erm = Trainer(self.rows, self.resolve("erm"), self.options, self.resolve)
        if erm.overwrites(erm.folder) and erm.is_there():
            erm.options = replace(erm.options, overwrite=False)
        model = erm.learn()
        self._base = weights_fingerprint(model.network)
        self._elsewhere += time.perf_counter() - began
        return model

    def learn(self) -> Algorithm:
        """The trained algorithm of the plan; its row is in ``results.jsonl``, with the seconds of the loops of all its stages, of
        interrupted parts too, and what was done between these. What is only read keeps its seconds.
        """
        name, run, main_process = self.plan.kind.name, self.options.run, PartialState().is_main_process
        if main_process and (self.overwrites(self.folder) or not (self.folder / CHECKPOINT).exists()):
            forget(run, name, self.seed)  # before the weights that it is about
        self.rows.selection(self.config.validation_rows)  # made once for all; not this training's time
        self.seconds, self._elsewhere, began = 0.0, 0.0, time.perf_counter()
        model = self.plan.kind.learn(self)
        self.seconds += time.perf_counter() - began - self._elsewhere
        if main_process:
            row = row_of(self)
            known = [r for r in results(run) if (r["algorithm"], r["seed"], r["steps"]) == (name, self.seed, row["steps"])]
            self.row = {**row, "seconds": known[0]["seconds"]} if known and self._only_read else row
            record(run, self.row)
        return model

    # ------------------------------------------------------------------------------------------------ fitting
    def updates(self, config: TrainingConfig, train: Split) -> int | None:
        """How many updates a training has; None where its budget is a time."""
        return updates_of(config, len(train), PartialState().num_processes)

    def overwrites(self, folder: Path) -> bool:
        """Whether a training in this folder is to be thrown away: not one of this very command."""
        return self.options.overwrite and folder not in self.rows.trained

    def is_there(self) -> bool:
        """Whether a finished training of this plan is there, of an algorithm of one stage."""
        config = replace(self.config, validation_rows=len(self.valid))
        total = self.updates(config, self.train)
        state = finished_training(self.folder, config, total)
        return state is not None and not difference(state, config, total, self.describe(self.build()))

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
        total, overwrite, began = self.updates(config, train), self.overwrites(folder), time.perf_counter()
        done = not overwrite and finished_training(folder, config, total) is not None
        fit(model, train, valid, config, folder, self.describe(model, stage),
            replace(self.options, resume=self.options.resume or done, overwrite=overwrite), kept=model.network,
            rules=criteria(valid, self.rows.sizes), restarts=model.restarts(total))
        self.rows.trained.add(folder)
        self._only_read &= done
        self._elsewhere += time.perf_counter() - began
        self.seconds += MetricsLog.read(folder / METRICS)[-1]["seconds"]
        return model.eval()

    def describe(self, model: Algorithm, stage: str = "") -> dict[str, Any]:
        """Plain values that tell this training from others; stored with the weights."""
        task = {"label": self.task.label.name, "spurious": [v.name for v in self.task.spurious], "environment": self.task.environment,
                "classes_of_label": list(self.task.label.classes)}
        made = {"counterfactuals": self.rows.made_by} if "counterfactuals" in model.needs else {}
        base = {"base": self._base} if self._base else {}
        return {**model.describe(), "task": task, "stage": stage, **made, **base}


def with_columns(split: Split, **columns: Tensor | LazyImages) -> Split:
    """The same rows with further columns, ``(N, …)`` each.

    Raises:
        SchemaError: for a column of another length.
    """
    for name, values in columns.items():
        if len(values) != len(split):
            raise SchemaError(f"column {name!r} has {len(values)} values for {len(split)} rows")
    return Split(split.name, split.images, {**split.attributes, **columns})

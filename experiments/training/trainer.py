"""One training of one classifier: an algorithm, a seed, a folder. All fitting is :func:`mechanisms.training.loop.fit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from datasets.base import Split, with_columns
from experiments.algorithms.base import Algorithm
from experiments.augmenters.geometry import GeometricTransform, crop_and_flip
from experiments.metrics.groups import left_out, worst_group
from experiments.networks.base import Network
from experiments.networks.registry import fresh
from experiments.networks.torchvision import NONE, Backbone
from experiments.training.plan import Plan
from experiments.training.rows import Rows
from experiments.training.rules import RULES
from experiments.training.selection import criteria
from experiments.training.stopwatch import Stopwatch
from experiments.training.store import folder_of, forget, record, results
from mechanisms.runs.files import MetricsLog, RunError, load, weights_fingerprint
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.hooks import Hooks, check_average
from mechanisms.training.loop import fit, updates_of
from mechanisms.training.resume import difference, finished_training
from mechanisms.training.state import CHECKPOINT, METRICS, WEIGHTS


class Trainer:
    """What an algorithm trains with: the :class:`experiments.algorithms.base.TrainingContext` of its :meth:`Algorithm.learn`.

    With several processes (``torchrun``), batch norm takes its statistics over each process's own rows of a batch, and keeps
    those of the first process: networks with batch norm are then not quite what one process would train.

    Args:
        plan: of the algorithm, see :func:`experiments.training.plan.resolve`; its training's seed is this training's.
        resolve: plan of another algorithm by name, for :meth:`base`.
        options: ``run`` is the run folder that all classifiers share.

    Attributes:
        train: the training split; with the columns ``counterfactual`` and ``mask`` for algorithms that need them, and what their
            settings add.
        valid: what selection looks at, see :func:`experiments.training.selection.selection_split`.
        folder: ``<run>/classifiers/<algorithm>/seed-<n>``; a stage has a folder of its own in it.
        base_folder: the same of :meth:`base`.
        judged: the selection split of the last stage, once that is trained.
        base_weights: fingerprint of the weights that :meth:`base` gave; empty before. Stored with the weights of this training.
        watch: how long the training took, see :meth:`learn`.
        row: of ``results.jsonl``, once all is trained; on the main process.
    """

    def __init__(self, rows: Rows, plan: Plan, options: RunOptions, resolve: Callable[[str], Plan]) -> None:
        self.rows, self.plan, self.options, self.resolve = rows, plan, options, resolve
        self.task, self.settings, self.config, self.seed = rows.task, plan.settings, plan.training, plan.training.seed
        self.folder, self.base_folder = (folder_of(options.run, name, self.seed) for name in (plan.kind.name, "erm"))
        self.judged: Split | None = None
        self.base_weights, self.watch = "", Stopwatch()
        self.row: dict[str, Any] = {}

    def check(self) -> None:
        """Raises UserError for what cannot be trained, before anything is: see :meth:`Rows.check`; averages with batch norm."""
        network, ema = self.network(), self.config.ema
        self.rows.check(self.plan.needs, self.plan.kind.name, self.plan.kind.grouped, type(network))
        self.plan.kind(network, self.rows.sizes, self.settings, self.plan.classifier.l2)  # which refuses what cannot go together
        self.plan.kind.columns(self.settings, self.task)
        self.plan.kind.check_rows(self)
        if self.reads_features and self.augmentation() is not None:
            raise RunError(f"--crop and --flip change images, but {self.plan.kind.name} is trained on features of a --frozen body, made "
                           "once; leave one of them out")
        if network.frozen and not network.pretrained:
            mend = "give --weights default or PATH" if isinstance(network, Backbone) else (
                "leave --frozen out, or take one that has pretrained weights, as --network resnet18 --weights default")
            self.rows.warn(f"--frozen with --weights none: the features of --network {network.name} are those of random weights; {mend}",
                           "frozen")
        if not network.frozen:
            check_average(network, ema, f"--network {network.name}")

    # ------------------------------------------------------------------------------------------------ data
    @cached_property
    def train(self) -> Split:
        columns = {} if self.counterfactuals is None else {"counterfactual": self.counterfactuals}
        if "masks" in self.plan.needs:
            columns["mask"] = self.rows.masks
        if "relabelled" in self.plan.needs:
            columns["relabelled"] = self.rows.relabelled
        columns |= self.plan.kind.columns(self.settings, self.task)
        return with_columns(self.seen(self.rows.train), **{name: self.rows.of_train(values) for name, values in columns.items()})

    @property
    def selection(self) -> Split:
        """What selection looks at, with its images."""
        return self.rows.selection(self.config.validation_rows)

    @cached_property
    def valid(self) -> Split:
        return self.seen(self.selection)

    @property
    def reads_features(self) -> bool:
        """Whether the network's body is frozen, and the algorithm can do with its features."""
        return self.plan.classifier.frozen and self.plan.kind.reads_features

    def seen(self, split: Split) -> Split:
        """A split of the rows as this training sees it: with images, or with the features of a frozen body."""
        if not self.reads_features:
            return split
        of = self.plan.classifier
        body = of.network, of.hidden, of.weights, self.seed if of.weights == NONE else None
        return self.rows.featured(split, body, self.network, self.config.device)

    @cached_property
    def counterfactuals(self) -> Tensor | None:
        """``(N, M, C, H, W)`` uint8 of the training split; None for algorithms that need none."""
        return self.rows.counterfactuals if "counterfactuals" in self.plan.needs else None

    # ------------------------------------------------------------------------------------------------ models
    def network(self) -> Network:
        """Freshly initialised, or with the pretrained body that is asked for; a function of the seed."""
        return fresh(self.plan.classifier, self.task.dataset.schema.image.shape, self.rows.sizes.classes, self.seed)

    def build(self, network: Network | None = None) -> Algorithm:
        """The plan's algorithm around ``network``, whose weights it remembers; around a fresh one if None.

        Raises:
            RunError: for a network whose body is not the one that made the features.
        """
        kind = self.plan.kind
        if network is not None and self.reads_features and network.body_fingerprint() != self.network().body_fingerprint():
            raise RunError(f"{kind.name} is trained on the features of a frozen body, but begins with a network of another one; train both "
                           "with the same --network, --weights and --frozen")
        model = kind(self.network() if network is None else network, self.rows.sizes, self.settings, self.plan.classifier.l2)
        model.begun_from = "" if network is None else weights_fingerprint(network)
        return model

    def base(self) -> Algorithm:
        """ERM of the same seed, trained once into ``<run>/classifiers/erm`` and shared by all that begin with it.

        One of the same plan that is there is not overwritten: what others began with would be gone.
        """
        with self.watch.apart():
            erm = Trainer(self.rows, self.resolve("erm"), self.options, self.resolve)
            if erm.overwrites(erm.folder) and erm.is_there():
                erm.options = replace(erm.options, overwrite=False)
            model = erm.learn()
            self.base_weights = weights_fingerprint(model.network)
        return model

    def learn(self) -> Algorithm:
        """The trained algorithm of the plan; its row is in ``results.jsonl``, with the seconds of the loops of all its stages, of
        interrupted parts too, and what was done between these. What is only read keeps its seconds.
        """
        name, run, main_process = self.plan.kind.name, self.options.run, PartialState().is_main_process
        if main_process and (self.overwrites(self.folder) or not (self.folder / CHECKPOINT).exists()):
            forget(run, name, self.seed)  # before the weights that it is about
        self.rows.selection(self.config.validation_rows)  # made once for all, as features are; not this training's time
        if self.reads_features:
            self.seen(self.rows.train), self.valid
        self.watch = Stopwatch()
        with self.watch.running():
            model = self.plan.kind.learn(self)
        if main_process:
            row = row_of(self)
            before = [r for r in results(run) if (r["algorithm"], r["seed"], r["steps"]) == (name, self.seed, row["steps"])]
            self.row = {**row, "seconds": before[0]["seconds"]} if before and self.watch.only_read else row
            record(run, self.row)
        return model

    # ------------------------------------------------------------------------------------------------ fitting
    def updates(self, config: TrainingConfig, train: Split) -> int | None:
        """How many updates a training has; None where its budget is a time."""
        return updates_of(config, len(train), PartialState().num_processes)

    def overwrites(self, folder: Path) -> bool:
        """Whether a training in this folder is to be thrown away: not one of this very command."""
        return self.options.overwrite and folder not in self.rows.trained

    def is_finished(self) -> bool:
        """Whether a training that was asked for before is in the folder, and is only to be read."""
        return not self.overwrites(self.folder) and finished_training(self.folder, self.config, 1) is not None

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
            RunError: see :func:`mechanisms.training.loop.fit`.
        """
        train, valid = train or self.train, valid or self.valid
        if any(budget in changes for budget in ("epochs", "steps", "minutes")):
            changes = {"epochs": None, "steps": None, "minutes": None, **changes}
        config = replace(self.config, **changes)
        config = replace(config, validation_rows=len(valid))
        self.judged = self.judged if stage else valid
        folder = self.folder / stage if stage else self.folder
        total, overwrite = self.updates(config, train), self.overwrites(folder)
        with self.watch.apart():
            done = not overwrite and finished_training(folder, config, total) is not None
            fit(model, train, valid, config, folder, self.describe(model, stage),
                replace(self.options, resume=self.options.resume or done, overwrite=overwrite),
                Hooks(model.network, rules=criteria(valid, self.rows.sizes), restarts=model.restarts(), augment=self.augmentation()))
        self.rows.trained.add(folder)
        self.watch.add_stage(MetricsLog.last(folder / METRICS)["seconds"], done)
        return model.eval()

    def augmentation(self) -> GeometricTransform | None:
        """What is done to training batches; None where nothing is."""
        config, (_, height, width) = self.plan.classifier, self.task.dataset.schema.image.shape
        return crop_and_flip(height, width, config.crop, 0.5 if config.flip else 0.0) if config.crop or config.flip else None

    def describe(self, model: Algorithm, stage: str = "") -> dict[str, Any]:
        """Plain values that tell this training from others; stored with the weights."""
        task = {"label": self.task.label.name, "spurious": [v.name for v in self.task.spurious], "environment": self.task.environment,
                "classes_of_label": list(self.task.label.classes)}
        source = {"counterfactuals": self.rows.made_by} if self.plan.needs & {"counterfactuals", "relabelled"} else {}
        base = {"base": self.base_weights} if self.base_weights else {}
        config = self.plan.classifier
        moved = {"augmentation": {"crop": config.crop, "flip": config.flip}} if config.crop or config.flip else {}
        return {**model.describe(), "task": task, "stage": stage, **source, **base, **moved,
                **self.rows.study.describe("masks" in self.plan.needs)}


def row_of(trainer: Trainer) -> dict[str, Any]:
    """The row of ``results.jsonl`` of a finished training; see :func:`experiments.training.run.train_classifiers`."""
    log = {row["step"]: row for row in MetricsLog.read(trainer.folder / METRICS)}
    last = log[max(log)]
    selected = load(trainer.folder / WEIGHTS, "classifier")["selected"]
    steps = {"last": last["step"], **{rule: selected[rule]["step"] for rule in RULES if rule in selected}}
    judged = trainer.judged or trainer.valid
    labels = judged.attributes["label"][judged.attributes["shift"] == 0]
    shifts = range(trainer.rows.sizes.shifts)
    groups, (small, few) = trainer.rows.sizes.groups, left_out(judged, trainer.rows.sizes.groups)
    rules, study = {}, trainer.rows.study.describe("masks" in trainer.plan.needs)
    for rule, step in steps.items():
        means = log[step]["valid"]
        rules[rule] = {"step": step, "accuracy": means["accuracy"], "worst_group": worst_group(means, judged), "loss": means["loss"]}
        if shifts:
            rules[rule]["shifted"] = sum(means[f"shift_{k}"] for k in shifts) / len(shifts)
    return {"algorithm": trainer.plan.kind.name, "seed": trainer.seed, "steps": last["step"], "seconds": round(trainer.watch.seconds, 3),
            "majority": float(torch.bincount(labels).max()) / len(labels), "rows": len(labels),
            "data_fraction": study.get("data_fraction", 1.0), "box_noise": study.get("box_noise"), "groups": groups,
            "groups_left_out": small, "rows_left_out": few, "rules": rules}

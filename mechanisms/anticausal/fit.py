"""Fits the predictors of a data set into a run folder, and tests them."""

from __future__ import annotations

import sys

import torch
from accelerate import PartialState

from datasets.base import CausalDataset
from datasets.options import DataOptions
from datasets.ranges import check_field, check_ranges
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.anticausal.decorrelate import decorrelated, joined
from mechanisms.anticausal.model import FOLDER, Predictors, describe
from mechanisms.anticausal.options import DEFAULT_STEPS, DEFAULTS, Options
from mechanisms.anticausal.scores import TEST, report, score
from mechanisms.base import term_of
from mechanisms.runs.files import write_json
from mechanisms.runs.fitting import fitting
from mechanisms.runs.folder import claim
from mechanisms.training.augment import augmentation
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.hooks import Hooks
from mechanisms.training.loop import fit


def train_predictors(dataset: CausalDataset, data: DataOptions, run: RunOptions, training: TrainingConfig = DEFAULTS,
                     config: PredictorConfig = PredictorConfig(), renderings: int = 2, shift: int = 2) -> Predictors:
    """Fit the predictors of ``dataset`` into ``run/predictors``, leave their test error in ``test.json`` there, and return them.

    They are fitted to the training split as observed together with the same rows made independent in their causes
    (:func:`mechanisms.anticausal.decorrelate.decorrelated`), because they must be right on both kinds of images; see
    ``docs/design-notes.md``.

    Args:
        data: how ``dataset`` was opened; the run folder remembers it.
        renderings: how often each training row is rendered under independent causes.
        shift: augment by random translations of up to so many pixels.

    Raises:
        UserError: see :func:`mechanisms.training.loop.fit`; for an image without causes; for a number out of its range.
    """
    training = training.or_budget(steps=DEFAULT_STEPS)
    training.check()
    check_ranges(config)
    check_field(Options, "renderings", renderings)
    check_field(Options, "shift", shift)
    torch.manual_seed(training.seed)
    with fitting(f"--width {config.width} --blocks {config.blocks} --features {config.features}"):
        model = Predictors(dataset.graph, config)
    claim(run.run, dataset, data)
    times = {"train": renderings, "valid": 1, "test": 1}
    independent = {name: decorrelated(dataset, name, training.seed, count) for name, count in times.items()}
    both = {name: joined(dataset.split(name), independent[name].split, training.seed) for name in ("train", "valid")}
    description = {**describe(model), "data": {"renderings": renderings, "shift": shift}}
    folder = run.run / FOLDER
    model = fit(model, both["train"], both["valid"], training, folder, description, run, Hooks(
        augment=augmentation(shift),
        criterion=lambda means: sum(means[term_of(name)] for name in model.names)))  # the likelihood; the loss is a weighted one
    if PartialState().is_main_process:
        results = score(model, dataset.split("test"), independent["test"])
        write_json(folder / TEST, results)
        print(report(results))
        for warning in dict.fromkeys(rows.warning for rows in independent.values() if rows.warning):
            print(f"warning: {warning}", file=sys.stderr)
    return model

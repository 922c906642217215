"""What all trials of a comparison share: the conditions it is marked with, questions, predictors, attributes, true pairs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from datasets.base import CausalDataset
from datasets.options import DataOptions
from dscm.evaluation.questions import draw_questions
from experiments.comparison.conditions import Conditions
from experiments.comparison.methods import METHODS
from experiments.comparison.supervised import true_pairs
from experiments.comparison.trial import ATTRIBUTES_OF_SEEDS, QUESTIONS, TEACHERS, Trial
from mechanisms.anticausal import fit as anticausal
from mechanisms.anticausal import options as predictors
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.runs.files import RunError, load, read_json, write_json
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.devices import find_device
from mechanisms.training.state import CHECKPOINT, WEIGHTS
from pgm import options as attributes
from pgm.fit import train_attributes

RECORD = "study.json"
_FREE = ("seed", "device", "workers", "checkpoint_seconds")  # of the training: may change from call to call


def claim_study(root: Path, conditions: Conditions, dataset: CausalDataset, overwrite: bool = False) -> None:
    """Mark the folder as this comparison's, or check that it is.

    Raises:
        RunError: if it holds a comparison under other conditions, or something that is no comparison.
    """
    training = {key: value for key, value in asdict(conditions.training).items() if key not in _FREE}
    if conditions.budgets:  # which are in folders of their own
        training = {key: value for key, value in training.items() if key not in ("epochs", "steps", "minutes")}
    now = {"dataset": dataset.title, "data": dataset.graph.fingerprint(), "options": list(conditions.data.option),
           "count": conditions.count, "draws": conditions.draws, "predictor_steps": conditions.predictor_steps,
           "finetune_share": conditions.finetune_share,
           **{f"training, {key}": value for key, value in training.items()},
           **({"jobs": conditions.jobs, "threads": torch.get_num_threads(), "device": str(find_device(conditions.training.device))}
              if conditions.training.minutes else {}),
           **{f"mechanism, {key}": value for key, value in asdict(conditions.config).items()}}
    path = root / RECORD
    if path.exists() and not overwrite:
        then = read_json(path, {}, "Choose another --run, or --overwrite")
        if changed := [f"{key} {then[key]} → {value}" for key, value in now.items() if key in then and then[key] != value]:
            raise RunError(f"{root} holds a comparison under other conditions ({'; '.join(changed)}), whose figures do not belong "
                           "into one table with these; choose another --run, or --overwrite")
        write_json(path, {**then, **now})
        return
    if path.exists():
        for folder in (*METHODS, PREDICTORS, TEACHERS, ATTRIBUTES_OF_SEEDS, *(p.name for p in root.glob("*min") if p.is_dir())):
            shutil.rmtree(root / folder, ignore_errors=True)
        (root / QUESTIONS).unlink(missing_ok=True)
    elif root.exists() and any(root.iterdir()):
        raise RunError(f"{root} already holds something that is no comparison; choose another --run")
    write_json(path, now)


def share(root: Path, conditions: Conditions, dataset: CausalDataset, trials: Sequence[Trial]) -> None:
    """Questions, predictors, the attributes of each seed and true pairs: made once, before any of these trials needs them."""
    data, training = conditions.data, conditions.training
    path = root / QUESTIONS
    if not path.exists():
        draw_questions(dataset, "test", min(conditions.count, len(dataset.split("test"))), training.seed).save(path)
    common = {"device": training.device, "validation_rows": training.validation_rows}
    judges = replace(predictors.DEFAULTS, steps=conditions.predictor_steps, seed=training.seed, **common)
    train_predictors(dataset, data, root, judges)
    if any(METHODS[trial.method].after for trial in trials):
        train_predictors(dataset, data, root / TEACHERS, replace(judges, seed=training.seed + 1_000))
    for seed in sorted({trial.seed for trial in trials if trial.trained}):
        run = root / ATTRIBUTES_OF_SEEDS / f"seed-{seed}"
        fit = replace(attributes.DEFAULTS, steps=attributes.DEFAULT_STEPS, seed=seed, **common)
        if not reached(run / attributes.FOLDER, fit.steps):
            train_attributes(dataset, data, continued(run, attributes.FOLDER), fit)
    if any(METHODS[trial.method].bound and trial.trained for trial in trials):
        true_pairs(dataset, "train")


def train_predictors(dataset: CausalDataset, data: DataOptions, run: Path, training: TrainingConfig) -> None:
    """Predictors in this run folder, trained so far; nothing if they are."""
    if not reached(run / PREDICTORS, training.steps):
        anticausal.train_predictors(dataset, data, continued(run, PREDICTORS), training)


def continued(run: Path, folder: str) -> RunOptions:
    """To go on with the training in this folder of a run if there is one."""
    return RunOptions(run, resume=(run / folder / CHECKPOINT).exists())


def reached(folder: Path, steps: int) -> bool:
    """Whether a training has come so far."""
    return (folder / WEIGHTS).exists() and load(folder / WEIGHTS)["step"] >= steps

"""Fits the attributes' structural causal model by maximum likelihood."""

from __future__ import annotations

from dataclasses import asdict

import torch

from datasets.base import CausalDataset
from datasets.options import DataOptions
from mechanisms.runs.fitting import fitting
from mechanisms.runs.folder import claim
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.loop import fit
from pgm.options import DEFAULT_STEPS, DEFAULTS, FOLDER, AttributeConfig
from pgm.scm import AttributeSCM


def train_attributes(dataset: CausalDataset, data: DataOptions, run: RunOptions, training: TrainingConfig = DEFAULTS,
                     config: AttributeConfig = AttributeConfig()) -> AttributeSCM:
    """Fit the attributes of ``dataset`` into ``run/pgm``; without a budget, 600 updates.

    Args:
        data: what ``dataset`` was opened with, for the run's record.

    Raises:
        UserError: see :func:`mechanisms.training.loop.fit`.
    """
    training = training.or_budget(steps=DEFAULT_STEPS)
    training.check()
    claim(run.run, dataset, data)
    torch.manual_seed(training.seed)
    with fitting(f"--bins {config.bins} --hidden {' '.join(map(str, config.hidden))}"):
        scm = AttributeSCM(dataset.graph, config)
    description = {"kind": "attributes", "graph": dataset.graph.to_dict(), "config": asdict(config)}
    train, valid = (dataset.split(name).without_images() for name in ("train", "valid"))
    return fit(scm, train, valid, training, run.run / FOLDER, description, run)

"""The quickstart's trainings: each is one command's, into its own folder of the run, and goes on with what that folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from datasets.base import CausalDataset
from datasets.options import DataOptions
from mechanisms.anticausal import fit as anticausal
from mechanisms.anticausal import options as predictors
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.image import fit as image_fit
from mechanisms.image import options as image
from mechanisms.image.registry import FOLDER as IMAGE
from mechanisms.training.config import RunOptions
from mechanisms.training.state import CHECKPOINT
from pgm import fit as pgm_fit
from pgm import options as attributes

MECHANISMS = (attributes.FOLDER, IMAGE, PREDICTORS)  # folders of what is trained


def train_attributes(dataset: CausalDataset, data: DataOptions, where: RunOptions, changes: Mapping[str, int], seed: int,
                     device: str) -> None:
    """Fit the attributes' causal model into ``pgm/``; ``changes`` are fields of the training that replace its usual ones."""
    training = replace(attributes.DEFAULTS, seed=seed, device=device, **changes).or_budget(steps=attributes.DEFAULT_STEPS)
    pgm_fit.train_attributes(dataset, data, resumed(where, attributes.FOLDER), training)


def train_image(dataset: CausalDataset, data: DataOptions, where: RunOptions, changes: Mapping[str, float], seed: int, device: str,
                precision: str) -> None:
    """Fit the image mechanism into ``image/``."""
    training = replace(image.DEFAULTS, seed=seed, device=device, precision=precision, **changes)
    image_fit.train_image(dataset, data, resumed(where, IMAGE), training)


def train_predictors(dataset: CausalDataset, data: DataOptions, where: RunOptions, changes: Mapping[str, float], seed: int,
                     device: str) -> None:
    """Fit the predictors into ``predictors/``."""
    training = replace(predictors.DEFAULTS, seed=seed, device=device, validations=2, ema=0.99, **changes)
    anticausal.train_predictors(dataset, data, resumed(where, PREDICTORS), training, renderings=1)


def resumed(where: RunOptions, folder: str) -> RunOptions:
    """``where``, resuming only if ``folder`` of the run holds a training; one that has reached its budget then stays as it is."""
    path = where.run / folder
    resume = where.resume and not where.overwrite and (path / CHECKPOINT).exists()
    if resume:
        print(f"{path} holds a training: it goes on from there, unless it has reached its end (--overwrite begins anew)")
    return replace(where, resume=resume)

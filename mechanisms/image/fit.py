"""Fits an image mechanism into a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from datasets.base import CausalDataset
from datasets.errors import UserError, valid_are
from datasets.options import DataOptions
from datasets.ranges import check_field, check_ranges
from mechanisms.image.base import ImageMechanism
from mechanisms.image.config import PRESETS, ImageConfig
from mechanisms.image.options import DEFAULT_MINUTES, DEFAULTS, Options
from mechanisms.image.registry import FOLDER, build, builder, config_class, describe
from mechanisms.runs.fitting import fitting
from mechanisms.runs.folder import claim
from mechanisms.training.augment import augmentation
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.hooks import Hooks
from mechanisms.training.loop import fit


def train_image(dataset: CausalDataset, data: DataOptions, run: RunOptions, training: TrainingConfig = DEFAULTS, mechanism: str = "hvae",
                config: ImageConfig = ImageConfig(), settings: Mapping[str, Any] | None = None, preset: str = "none", shift: int = 0,
                flip: bool = False) -> ImageMechanism:
    """Fit the image mechanism of ``dataset`` into ``run/image`` and return it in eval mode.

    Args:
        data: how ``dataset`` was opened; the run folder remembers it.
        mechanism: a registered name, or ``FILE.py:build``.
        config: of the VAE family; of other mechanisms, its defaults.
        settings: of the mechanism, as values or text; see :func:`mechanisms.image.registry.build`.
        preset: a named topology of the VAE family, or none.
        shift, flip: augmentation, see :func:`mechanisms.training.augment.augmentation`.

    Raises:
        UserError: see :func:`mechanisms.training.loop.fit`; for an unknown mechanism, preset or setting; for a configuration of the
            VAE family beside a mechanism of another; for a user's file that does not work.
    """
    training = training.or_budget(minutes=DEFAULT_MINUTES)
    training.check()
    check_ranges(config)
    check_field(Options, "shift", shift)
    torch.manual_seed(training.seed)
    with fitting(f"the image mechanism {mechanism}"):
        model = build(mechanism, dataset.graph, configured(mechanism, config, settings or {}, preset), settings)
    claim(run.run, dataset, data)
    return fit(model, dataset.split("train"), dataset.split("valid"), training, run.run / FOLDER, describe(model), run,
               Hooks(augment=augmentation(shift, flip)))


def configured(mechanism: str, config: ImageConfig, settings: Mapping[str, Any], preset: str = "none") -> ImageConfig | None:
    """The configuration of a mechanism of the VAE family with its preset; None for a mechanism with settings of its own.

    Raises:
        UserError: for an unknown preset; for a field that is set twice, or that the mechanism does not have.
    """
    if preset != "none" and preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; {valid_are(PRESETS, preset)}")
    usual = ImageConfig()
    changed = [f.name for f in fields(config) if getattr(config, f.name) != getattr(usual, f.name)]
    if config_class(builder(mechanism)) is not ImageConfig:
        if given := [_flag(name) for name in changed] + ["--preset"] * (preset != "none"):
            raise UserError(f"{', '.join(given)}: not of the image mechanism {mechanism!r}; its own settings are given by --set KEY=VALUE")
        return None
    chosen = PRESETS.get(preset, {})
    if twice := [name for name in settings if name in changed or name in chosen]:
        flag = f"--preset {preset}" if twice[0] in chosen else _flag(twice[0])
        raise UserError(f"{flag} and --set {twice[0]}={settings[twice[0]]} say the same; leave one out")
    return replace(config, **chosen)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

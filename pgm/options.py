"""What the attributes' mechanisms are like, and options of ``python -m pgm.train``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets.options import DataOptions
from datasets.ranges import Width
from mechanisms.training.config import Bins, RunOptions, TrainingConfig

FOLDER = "pgm"
DEFAULTS = TrainingConfig(batch_size=512, learning_rate=2e-2, beta2=0.99, warmup=20, weight_decay=0.0, ema=0.98, keep="best",
                          precision="fp32")
DEFAULT_STEPS = 600


@dataclass(frozen=True)
class AttributeConfig:
    """Sizes of the attribute mechanisms."""

    bins: Bins[int] = 8
    """Bins of the splines of continuous attributes."""
    hidden: Width[tuple[int, ...]] = (32, 32)
    """Widths of the layers that read an attribute's parents."""


@dataclass(frozen=True)
class Options:
    """Fit the attributes' structural causal model: one mechanism per attribute, from the graph alone."""

    data: DataOptions = field(default_factory=DataOptions)
    run: RunOptions = field(default_factory=RunOptions)
    training: TrainingConfig = DEFAULTS
    config: AttributeConfig = field(default_factory=AttributeConfig)

"""How a command line asks for predictors. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets.options import DataOptions
from datasets.ranges import Renderings
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.training.config import RunOptions, Shift, TrainingConfig

DEFAULTS = TrainingConfig(batch_size=64, learning_rate=2e-3, beta2=0.99, warmup=50, weight_decay=0.05, clip=20.0, ema=0.995)
DEFAULT_STEPS = 3000


@dataclass(frozen=True)
class Options:
    """Fit predictors of the image's causes on decorrelated data and print their honest test error; without a budget, 3,000 updates."""

    data: DataOptions = field(default_factory=DataOptions)
    run: RunOptions = field(default_factory=RunOptions)
    training: TrainingConfig = DEFAULTS
    config: PredictorConfig = field(default_factory=PredictorConfig)
    renderings: Renderings[int] = 2
    """How often each training row is rendered under independent causes, where the data set knows its process."""
    shift: Shift[int] = 2
    """Augment by random translations of up to so many pixels; 0 where a position is among the attributes."""

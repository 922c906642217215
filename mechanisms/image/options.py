"""How a command line asks for an image mechanism. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from datasets.options import DataOptions
from mechanisms.image.config import ImageConfig
from mechanisms.training.config import RunOptions, Shift, TrainingConfig

DEFAULTS = TrainingConfig(batch_size=16, learning_rate=2e-3, beta2=0.99, warmup=50, weight_decay=0.01, ema=0.99, keep="last")
DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class Options:
    """Fit the image mechanism p(image | parents); without a budget, 10 minutes."""

    data: DataOptions = field(default_factory=DataOptions)
    run: RunOptions = field(default_factory=RunOptions)
    training: TrainingConfig = DEFAULTS
    mechanism: str = "hvae"
    """Which image mechanism: hvae (latents at every resolution), vae (one latent vector), another of mechanisms/image/, or the function
    or class of your own file, FILE.py:build (docs/my_mechanism.py)."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of the mechanism as KEY=VALUE; may be repeated. Those of hvae and vae have flags of their own, too."""
    preset: str = "none"
    """A named topology that replaces --encoder, --decoder, --widths and --patch: cpu or reference."""
    shift: Shift[int] = 0
    """Augment by random translations of up to so many pixels."""
    flip: bool = False
    """Augment by random mirroring."""
    config: ImageConfig = field(default_factory=ImageConfig)

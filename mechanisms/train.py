"""``python -m mechanisms.train``: fits the image mechanism."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from datasets.options import DataOptions
from datasets.ranges import check_ranges
from mechanisms.image.config import PRESETS, ImageConfig
from mechanisms.runs.command import run_command
from mechanisms.training.config import RunOptions, Shift, TrainingConfig

if TYPE_CHECKING:
    from datasets.base import CausalDataset
    from mechanisms.image.base import ImageMechanism

DEFAULTS = TrainingConfig(batch_size=16, learning_rate=2e-3, beta2=0.99, warmup=50, weight_decay=0.01, ema=0.99, keep="last")
DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class Options:
    """Fit the image mechanism p(image | parents); without a budget, 10 minutes."""

    data: DataOptions = field(default_factory=DataOptions)
    run: RunOptions = field(default_factory=RunOptions)
    training: TrainingConfig = DEFAULTS
    mechanism: str = "hvae"
    """Which image mechanism: hvae (latents at every resolution), vae (one latent vector), or another of mechanisms/image/."""
    preset: str = "none"
    """A named topology that replaces --encoder, --decoder, --widths and --patch: cpu or reference."""
    shift: Shift[int] = 0
    """Augment by random translations of up to so many pixels."""
    flip: bool = False
    """Augment by random mirroring."""
    config: ImageConfig = field(default_factory=ImageConfig)


def train_image(dataset: CausalDataset, options: Options) -> ImageMechanism:
    """Fit the image mechanism of ``dataset`` into ``run/image``.

    Raises:
        UserError: see :func:`mechanisms.training.loop.fit`; unknown mechanism or preset.
    """
    import torch

    from datasets.errors import UserError, valid_are
    from mechanisms.image.registry import FOLDER, build, describe
    from mechanisms.runs.fitting import fitting
    from mechanisms.runs.folder import claim
    from mechanisms.training.augment import augmentation
    from mechanisms.training.hooks import Hooks
    from mechanisms.training.loop import fit

    training = options.training.or_budget(minutes=DEFAULT_MINUTES)
    if options.preset != "none" and options.preset not in PRESETS:
        raise UserError(f"unknown preset {options.preset!r}; {valid_are(PRESETS, options.preset)}")
    training.check()
    check_ranges(options)
    torch.manual_seed(training.seed)
    with fitting(f"the image mechanism {options.mechanism}"):
        model = build(options.mechanism, dataset.graph, replace(options.config, **PRESETS.get(options.preset, {})))
    claim(options.run.run, dataset, options.data)
    train, valid = dataset.split("train"), dataset.split("valid")
    return fit(model, train, valid, training, options.run.run / FOLDER, describe(model), options.run,
               Hooks(augment=augmentation(options.shift, options.flip)))


def main(options: Options) -> None:
    train_image(options.data.open(), options)


if __name__ == "__main__":
    run_command(Options, main)

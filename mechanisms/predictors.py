"""``python -m mechanisms.predictors``: fits q(attribute | image), the predictors that judge counterfactuals, and tests them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datasets.options import DataOptions
from datasets.ranges import Renderings, check_ranges
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.runs.command import run_command
from mechanisms.training.config import RunOptions, Shift, TrainingConfig

if TYPE_CHECKING:
    from datasets.base import CausalDataset
    from mechanisms.anticausal.model import Predictors

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


def train_predictors(dataset: CausalDataset, options: Options) -> Predictors:
    """Fit the predictors of ``dataset`` into ``run/predictors`` and leave their test error in ``test.json`` there.

    They are fitted to the training split as observed together with the same rows made independent in their causes
    (:func:`mechanisms.anticausal.decorrelate.decorrelated`), because they must be right on both kinds of images. (Of 8,000 MNIST
    digits, 600 updates, validation: thickness to 0.096 px as observed and 0.103 decorrelated; without the observed rows
    0.104 and 0.102. Intensity 2.5 and 3.1 of 255 against 2.5 and 2.9; digits alike.)

    Raises:
        UserError: see :func:`mechanisms.training.loop.fit`; an image without causes; ``renderings`` below 1.
    """
    import sys

    import torch
    from accelerate import PartialState

    from mechanisms.anticausal.decorrelate import decorrelated, joined
    from mechanisms.anticausal.model import FOLDER, Predictors, describe
    from mechanisms.anticausal.scores import TEST, report, score
    from mechanisms.base import term_of
    from mechanisms.runs.files import write_json
    from mechanisms.runs.fitting import fitting
    from mechanisms.runs.folder import claim
    from mechanisms.training.augment import augmentation
    from mechanisms.training.hooks import Hooks
    from mechanisms.training.loop import fit

    training = options.training.or_budget(steps=DEFAULT_STEPS)
    training.check()
    check_ranges(options)
    torch.manual_seed(training.seed)
    with fitting(f"--width {options.config.width} --blocks {options.config.blocks} --features {options.config.features}"):
        model = Predictors(dataset.graph, options.config)
    claim(options.run.run, dataset, options.data)
    times = {"train": options.renderings, "valid": 1, "test": 1}
    independent = {name: decorrelated(dataset, name, training.seed, count) for name, count in times.items()}
    both = {name: joined(dataset.split(name), made.split, training.seed) for name, made in independent.items() if name != "test"}
    description = {**describe(model), "data": {"renderings": options.renderings, "shift": options.shift}}
    folder = options.run.run / FOLDER
    model = fit(model, both["train"], both["valid"], training, folder, description, options.run, Hooks(
        augment=augmentation(options.shift),
        criterion=lambda means: sum(means[term_of(name)] for name in model.names)))  # the likelihood; the loss is a weighted one
    if PartialState().is_main_process:
        results = score(model, dataset.split("test"), independent["test"])
        write_json(folder / TEST, results)
        print(report(results))
        for warning in dict.fromkeys(made.warning for made in independent.values() if made.warning):
            print(f"warning: {warning}", file=sys.stderr)
    return model


def main(options: Options) -> None:
    train_predictors(options.data.open(), options)


if __name__ == "__main__":
    run_command(Options, main)

"""``python -m pgm.train``: fits the attributes' structural causal model by maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mechanisms  # noqa: F401  (explains a clash of names before anything else is imported)
from datasets.options import DataOptions
from datasets.ranges import Width, check_ranges
from mechanisms.runs.command import run_command
from mechanisms.training.config import Bins, RunOptions, TrainingConfig

if TYPE_CHECKING:
    from datasets.base import CausalDataset
    from pgm.scm import AttributeSCM

FOLDER = "pgm"
DEFAULTS = TrainingConfig(batch_size=512, learning_rate=2e-2, beta2=0.99, warmup=20, weight_decay=0.0, ema=0.98, keep="best",
                          precision="fp32")
DEFAULT_STEPS = 600


@dataclass(frozen=True)
class Options:
    """Fit the attributes' structural causal model: one mechanism per attribute, from the graph alone."""

    data: DataOptions = field(default_factory=DataOptions)
    run: RunOptions = field(default_factory=RunOptions)
    training: TrainingConfig = DEFAULTS
    bins: Bins[int] = 8
    """Bins of the splines of continuous attributes."""
    hidden: Width[tuple[int, ...]] = (32, 32)
    """Widths of the layers that read an attribute's parents."""


def train_attributes(dataset: CausalDataset, options: Options) -> AttributeSCM:
    """Fit the attributes of ``dataset`` into ``run/pgm``; without a budget, 600 updates.

    Raises:
        UserError: see :func:`mechanisms.training.loop.fit`.
    """
    from dataclasses import asdict

    import torch

    from mechanisms.runs.fitting import fitting
    from mechanisms.runs.folder import claim
    from mechanisms.training.loop import fit
    from pgm.scm import AttributeConfig, AttributeSCM

    training = options.training.or_budget(steps=DEFAULT_STEPS)
    training.check()
    check_ranges(options)
    claim(options.run.run, dataset, options.data)
    torch.manual_seed(training.seed)
    config = AttributeConfig(options.bins, options.hidden)
    with fitting(f"--bins {config.bins} --hidden {' '.join(map(str, config.hidden))}"):
        scm = AttributeSCM(dataset.graph, config)
    description = {"kind": "attributes", "graph": dataset.graph.to_dict(), "config": asdict(config)}
    train, valid = (dataset.split(name).without_images() for name in ("train", "valid"))
    return fit(scm, train, valid, training, options.run.run / FOLDER, description, options.run)


def main(options: Options) -> None:
    train_attributes(options.data.open(), options)


if __name__ == "__main__":
    run_command(Options, main)

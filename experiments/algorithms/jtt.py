"""Just train twice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.base import Split, with_columns
from datasets.ranges import AtLeastOne, within
from experiments.algorithms.base import Algorithm, TrainingContext
from experiments.algorithms.erm import ERM
from experiments.networks.base import Network, at_once
from experiments.networks.features import FEATURES

IDENTIFICATION = "identification"

Part = within(0, 1, above=True)


@dataclass(frozen=True)
class JTTSettings:
    """Of JTT."""

    share: Part[float] = 0.2
    """Budget of the first training, as a share of the second one's: early enough that it has learnt what is easy only."""
    weight: AtLeastOne[float] = 20.0
    """How many times a row that the first training gets wrong counts in the second."""


class JTT(ERM):
    """JTT (Liu et al. 2021, *Just train twice*): ERM for a short time; a new network on all rows, its errors weighted up.

    Weights are divided by their mean, which leaves the learning rate what it was.
    """

    name = "jtt"
    title = "JTT"
    assumes = "what an early ERM gets wrong are the rows on which the spurious attributes mislead, not mislabelled ones"
    settings = JTTSettings
    stackable = False

    @classmethod
    def learn(cls, trainer: TrainingContext) -> Algorithm:
        config = trainer.config
        budget = {name: value * trainer.settings.share for name in ("epochs", "minutes") if (value := getattr(config, name)) is not None}
        budget = budget or {"steps": math.ceil(config.steps * trainer.settings.share)}
        first = trainer.fit(trainer.build(), IDENTIFICATION, **budget)
        wrong = predicted(first.network, trainer.train) != trainer.train.attributes["label"]
        weight = 1 + (trainer.settings.weight - 1) * wrong.float()
        return trainer.fit(trainer.build(), train=with_columns(trainer.train, weight=weight / weight.mean()))


@torch.no_grad()
def predicted(network: Network, split: Split) -> Tensor:
    """The class of the largest logit of each row, ``(N,)``, on the processor; the network is in eval mode."""
    device = network.head.weight.device
    if FEATURES in split.attributes:
        return network.logits(split.attributes[FEATURES].to(device)).argmax(-1).cpu()
    parts = torch.arange(len(split)).split(at_once(network.shape))
    return torch.cat([network(split.batch(part)["image"].to(device)).argmax(-1).cpu() for part in parts])

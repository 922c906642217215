"""Deep feature reweighting: an ERM whose last layer is fitted anew on balanced groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.base import Split
from datasets.ranges import AtLeastOne, NotNegative, Positive
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy
from experiments.algorithms.reweighting import balanced
from experiments.networks.features import FEATURES, extract
from mechanisms.training.noise import seeded

if TYPE_CHECKING:
    from experiments.training.trainer import Trainer


@dataclass(frozen=True)
class DFRSettings:
    """Of DFR."""

    updates: AtLeastOne[int] = 500
    """Full-batch updates of the last layer."""
    head_rate: Positive[float] = 0.01
    """Learning rate of these, with Adam; it falls along a cosine."""
    decay: NotNegative[float] = 0.001
    """Weight of the sum of squares of the last layer's weights."""


class DFR(Algorithm):
    """DFR (Kirichenko et al. 2023, *Last layer re-training is sufficient for robustness to spurious correlations*).

    The body is that of ERM and stays frozen, batch norm's statistics too. The head is fitted by group-balanced
    cross-entropy (weights N / (G·N_g)) to one random half of the validation rows, and selection looks at the other half.
    So it sees labels *and groups of validation rows*, which other algorithms do not: tables should say so.
    """

    name = "dfr"
    title = "DFR (sees validation groups)"
    assumes = "ERM's features tell the label already, and a small set with known spurious attributes is at hand"
    needs = frozenset({"groups"})
    settings = DFRSettings
    grouped = "valid"
    reads_features = True

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.network.requires_grad_(False)
        self.network.head.requires_grad_(True)

    def train(self, mode: bool = True) -> DFR:
        """Only the head is ever in training mode."""
        super().train(mode)
        self.network.eval()
        return self

    @classmethod
    def learn(cls, trainer: Trainer) -> Algorithm:
        from datasets.base import with_columns
        from experiments.training.selection import halved

        model = trainer.build(trainer.base().network)
        fitted, judged = halved(trainer.valid, seeded(trainer.seed, 11, 0))
        groups = fitted.attributes["group"]
        weight = balanced(groups, model.sizes.groups)[groups]
        fitted, judged = (with_features(model, split) for split in (with_columns(fitted, weight=weight), judged))
        with torch.no_grad():  # features of another training's scale would need another rate: the head begins at nothing
            model.network.head.weight.zero_()
            model.network.head.bias.zero_()
        settings = trainer.settings
        return trainer.fit(model, train=fitted, valid=judged, steps=settings.updates, batch_size=len(fitted), optimizer="adam",
                           learning_rate=settings.head_rate, schedule="cosine", weight_decay=0.0, warmup=0)

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        losses = cross_entropy(self.read(batch), batch["label"])
        decay = self.options.decay * self.network.head.weight.square().sum()
        return {"loss": losses * batch.get("weight", 1.0) + decay, "risk": losses}


def with_features(model: Algorithm, split: Split) -> Split:
    """The same rows with the network's features ``(N, F)`` as a column, and images of no pixels; itself, if that is so already."""
    from datasets.base import with_columns

    return split if FEATURES in split.attributes else with_columns(split.without_images(), features=extract(model.network, split))

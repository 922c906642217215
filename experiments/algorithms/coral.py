"""Deep CORAL: features that are distributed alike in every environment, up to second moments."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.errors import UserError
from datasets.ranges import NotNegative, Share
from datasets.task import Sizes
from experiments.algorithms.base import Batch
from experiments.algorithms.groups import everywhere, means_by, members
from experiments.algorithms.penalised import Penalised, PenaltySettings
from experiments.networks.base import Network


@dataclass(frozen=True)
class CORALSettings(PenaltySettings):
    """Of CORAL."""

    penalty: NotNegative[float] = 1.0
    """Weight λ of the penalty once it is annealed."""
    anneal: Share[float] = 0.0
    """Share of the training before which the weight is 1 instead."""


class CORAL(Penalised):
    """CORAL (Sun and Saenko 2016; as in DomainBed): P = mean over pairs of environments of the mean square difference of the
    means, and of the covariances, of the features.
    """

    name = "coral"
    title = "CORAL"
    assumes = "what causes the label is distributed alike in every environment; it errs where the label's own frequency differs"
    settings = CORALSettings
    reads_features = False

    def __init__(self, network: Network, sizes: Sizes, settings: CORALSettings | None = None, l2: float = 0.0) -> None:
        if network.frozen:
            raise UserError("coral aligns what a network's body makes of the environments; --frozen holds the body fixed, so that the "
                            "penalty changes nothing. Leave --frozen out, or take erm")
        super().__init__(network, sizes, settings, l2)

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        means, covariances = moments(features, batch["environment"], len(counts))
        total, pairs = features.new_zeros(()), features.new_zeros(())
        for a, b in itertools.combinations(range(len(counts)), 2):
            both = ((counts[a] > 1) & (counts[b] > 1)).float()
            total = total + both * ((means[a] - means[b]).square().mean() + (covariances[a] - covariances[b]).square().mean())
            pairs = pairs + both
        return total / pairs.clamp(min=1)


def moments(features: Tensor, environments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means ``(E, F)`` and covariances ``(E, F, F)``, divided by n − 1, of the rows of each environment over all processes."""
    means, counts = means_by(features, environments, count)
    belongs = members(environments, count)
    centred = features - belongs @ means
    sums = torch.stack([(centred * row[:, None]).T @ centred for row in belongs.unbind(1)])
    return means, everywhere(sums) / (counts - 1).clamp(min=1)[:, None, None]

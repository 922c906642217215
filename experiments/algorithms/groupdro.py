"""Distributionally robust optimisation over groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.ranges import NotNegative
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy
from experiments.algorithms.groups import mean_of_present, means_by

_UNKNOWN = -1.0  # no cross-entropy is negative


@dataclass(frozen=True)
class GroupDROSettings:
    """Of GroupDRO."""

    eta: NotNegative[float] = 0.01
    """Step size η of the groups' weights."""


class GroupDRO(Algorithm):
    """GroupDRO (Sagawa et al. 2020, algorithm 1): q_g ∝ q_g·exp(η·R_g), then the loss Σ_g q_g·R_g.

    A group that the batch has no rows of keeps the risk that it had in the last batch with some; until there was one, it has
    the mean risk of the others, so that it is not outweighed for being rare. The weights q and the latest risks, ``(G,)``
    each, are buffers, so they are saved and resumed.
    """

    name = "groupdro"
    title = "GroupDRO"
    assumes = "the spurious attributes are known in training, and every combination with the label occurs"
    needs = frozenset({"groups"})
    settings = GroupDROSettings
    reads_features = True

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.register_buffer("q", torch.full((self.sizes.groups,), 1 / self.sizes.groups))
        self.register_buffer("latest", torch.full((self.sizes.groups,), _UNKNOWN))

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        losses = cross_entropy(self.read(batch), batch["label"])
        risks, counts = means_by(losses, batch["group"], self.sizes.groups)
        with torch.no_grad():
            self.latest.copy_(torch.where((counts > 0) & risks.isfinite(), risks, self.latest))
            known = self.latest >= 0
            q = self.q * torch.exp(self.options.eta * torch.where(known, self.latest, mean_of_present(self.latest, known)))
            self.q.copy_(q / q.sum())
        worst = torch.where(counts > 0, risks, -torch.inf).amax()
        return {"loss": self.q.clone() @ risks + self.penalty_of_weights(), "risk": losses, "worst": worst}

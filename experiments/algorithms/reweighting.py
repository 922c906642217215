"""Groups that count alike, whatever their size."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.algorithms.base import Algorithm, Batch, Draw, TrainingContext, cross_entropy


class GroupReweighting(Algorithm):
    """mean_i w_g(i)·CE_i, w_g = N / (G·N_g): each of the G groups with rows has the same share of the risk.

    Under these weights label and spurious attributes are independent. A baseline of Sagawa et al. 2020; see also Idrissi et
    al. 2022, *Simple data balancing achieves competitive worst-group-accuracy*. Its weights, ``(G,)``, are a buffer, 1 until
    :meth:`balance`.
    """

    name = "reweighting"
    title = "Group reweighting"
    assumes = "the spurious attributes are known in training, and every combination with the label occurs"
    needs = frozenset({"groups"})
    reads_features = True

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.register_buffer("weights", torch.ones(self.sizes.groups))

    def balance(self, groups: Tensor) -> GroupReweighting:
        """Take the weights from the groups ``(N,)`` of the training rows."""
        self.weights.copy_(balanced(groups, self.sizes.groups))
        return self

    @classmethod
    def learn(cls, trainer: TrainingContext) -> Algorithm:
        return trainer.fit(trainer.build().balance(trainer.train.attributes["group"]))

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        losses = cross_entropy(self.read(batch), batch["label"])
        return {"loss": losses * self.weights[batch["group"]] + self.penalty_of_weights(), "risk": losses}


def balanced(groups: Tensor, count: int) -> Tensor:
    """w_g = N / (G·N_g), ``(count,)``, G the number of groups with rows; 0 for those without."""
    sizes = torch.bincount(groups.cpu(), minlength=count).float()
    return torch.where(sizes > 0, len(groups) / ((sizes > 0).sum() * sizes.clamp(min=1)), torch.zeros(()))

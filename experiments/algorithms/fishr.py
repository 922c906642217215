"""Invariant variances of gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.ranges import NotNegative
from experiments.algorithms.base import Batch
from experiments.algorithms.groups import everywhere, members
from experiments.algorithms.penalised import Penalised, PenaltySettings


@dataclass(frozen=True)
class FishrSettings(PenaltySettings):
    """Of Fishr."""

    penalty: NotNegative[float] = 1000.0
    """Weight λ of the penalty once it is annealed."""


class Fishr(Penalised):
    """Fishr (Rame et al. 2022): P = mean_e ‖v_e − v‖², v_e the variance, over the rows of environment e, of each entry of the
    per-sample gradient of the linear head, and v the mean of the v_e.

    On a linear head the gradient of row i is g_i ⊗ (z_i, 1), g_i the cross-entropy's derivative by the head's outputs and z_i
    the features, so that all moments are matrix products: E[g²·z²] − E[g·z]², without a gradient of any single row.
    """

    name = "fishr"
    title = "Fishr"
    assumes = "at the right classifier the gradients of single images spread alike in every environment"
    settings = FishrSettings

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        gradients = by_outputs(logits, batch["label"], self.network.head.out_features)
        variances = gradient_variances(features, gradients, batch["environment"], counts)
        present = (counts > 0).float()[:, None]
        centre = (variances * present).sum(0) / present.sum()
        return ((variances - centre).square() * present).sum() / present.sum()


def by_outputs(logits: Tensor, labels: Tensor, outputs: int) -> Tensor:
    """The cross-entropy's derivative by the head's outputs, ``(B, outputs)``: softmax − one-hot; of a single output l, which
    stands for (−l/2, +l/2), p(1) − y.
    """
    gradients = logits.softmax(-1) - members(labels, logits.shape[-1])
    return gradients[:, 1:] if outputs == 1 else gradients


def gradient_variances(features: Tensor, gradients: Tensor, environments: Tensor, counts: Tensor) -> Tensor:
    """Variance of each entry of g ⊗ (z, 1) over the rows of each environment, ``(E, outputs·(F + 1))``.

    Args:
        features: z, ``(B, F)``.
        gradients: g, ``(B, outputs)``.
        counts: rows of each environment over all processes, ``(E,)``.
    """
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    belongs, sums = members(environments, len(counts)), []
    for g, z in ((gradients, inputs), (gradients.square(), inputs.square())):
        sums.append(torch.stack([(g * row[:, None]).T @ z for row in belongs.unbind(1)]))  # (E, outputs, F + 1)
    means = everywhere(torch.stack(sums)) / counts.clamp(min=1)[:, None, None]
    return (means[1] - means[0].square()).flatten(1)

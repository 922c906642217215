"""Invariant variances of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.ranges import NotNegative, Share, within
from experiments.algorithms.base import Batch
from experiments.algorithms.groups import everywhere, members
from experiments.algorithms.penalised import Penalised, PenaltySettings

Memory = within(0, 1, below=True)


@dataclass(frozen=True)
class FishrSettings(PenaltySettings):
    """Of Fishr."""

    penalty: NotNegative[float] = 1000.0
    """Weight λ of the penalty once it is annealed; DomainBed's, as anneal and memory are."""
    anneal: Share[float] = 0.3
    """Share of the training before which the weight is 1 instead."""
    memory: Memory[float] = 0.95
    """Share of earlier updates in the running mean of the variances, which are noisy on few rows; 0 takes those of the batch alone."""
    summed: bool = False
    """Add the squared differences of the head's entries up, instead of taking their mean: as published on Colored MNIST."""


class Fishr(Penalised):
    """Fishr (Rame et al. 2022): P = mean_e mean_k (v_ek − v_k)², v_ek the variance, over the rows of environment e, of entry k of the
    per-sample gradient of the linear head, and v the mean of the v_e.

    With ``memory`` m > 0, v_e is replaced by (m·a_e + (1 − m)·v_e) / (1 − m), a_e ← m·a_e + (1 − m)·v_e the running mean, 0 at first, which
    has no gradient. As in the authors' code it is divided by 1 − m, so that ∂/∂v_e does not shrink with m. The a_e are a buffer, so
    they are saved and resumed.

    On a linear head the gradient of row i is g_i ⊗ (z_i, 1), g_i the cross-entropy's derivative by the head's outputs and z_i
    the features, so that all moments are matrix products: E[g²·z²] − E[g·z]², without a gradient of any single row.
    """

    name = "fishr"
    title = "Fishr"
    assumes = "at the right classifier the gradients of single images spread alike in every environment"
    settings = FishrSettings

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        if self.options.memory:
            entries = self.network.head.out_features * (self.network.head.in_features + 1)
            self.register_buffer("variances", torch.zeros(self.sizes.environments, entries))

    @classmethod
    def stackable_with(cls, settings: Any) -> bool:
        return not settings.memory

    def penalty(self, features: Tensor, logits: Tensor, batch: Batch, risks: Tensor, counts: Tensor) -> Tensor:
        gradients = by_outputs(logits, batch["label"], self.network.head.out_features)
        variances = gradient_variances(features, gradients, batch["environment"], counts)
        present = (counts > 0).float()[:, None]
        if memory := self.options.memory:
            running = memory * self.variances + (1 - memory) * variances
            with torch.no_grad():
                self.variances.copy_(torch.where((present > 0) & running.isfinite(), running, self.variances))
            variances = running / (1 - memory)
        centre = (variances * present).sum(0) / present.sum()
        total = ((variances - centre).square() * present).sum() / present.sum()
        return total if self.options.summed else total / variances.shape[1]


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

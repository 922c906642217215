"""Images that are blends of two: of any two, or of two that were selected so that spurious attributes tell nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.ranges import Positive, Share
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy


@dataclass(frozen=True)
class MixupSettings:
    """Of Mixup."""

    alpha: Positive[float] = 0.2
    """Both parameters of the Beta distribution of a blend's share."""


@dataclass(frozen=True)
class LISASettings:
    """Of LISA."""

    alpha: Positive[float] = 2.0
    """Both parameters of the Beta distribution of a blend's share."""
    within_label: Share[float] = 0.5
    """Probability that a blend is of one label and two domains, not of two labels and one domain."""


class Mixup(Algorithm):
    """Mixup (Zhang et al. 2018): x̃ = λ·x + (1 − λ)·x', loss λ·CE(x̃, y) + (1 − λ)·CE(x̃, y'), λ ~ Beta(α, α), x' a random row."""

    name = "mixup"
    title = "Mixup"
    assumes = "between two images the label changes evenly; it does not know of spurious attributes"
    settings = MixupSettings

    def partners(self, batch: Batch, noise: Draw) -> Tensor:
        """The row that each row is blended with, ``(B,)``."""
        return noise(len(batch["label"]), 1)[:, 0].argsort()

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        labels, images = batch["label"], batch["image"]
        other = self.partners(batch, noise)
        share = beta(uniform(noise(len(labels), 1)[:, 0]), self.options.alpha)
        mixed = share[:, None, None, None] * images + (1 - share)[:, None, None, None] * images[other]
        logits = self.network(mixed)
        losses = share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(logits, labels[other])
        return {"loss": losses + self.penalty_of_weights(), "risk": losses}


class LISA(Mixup):
    """LISA (Yao et al. 2022, *Improving out-of-distribution robustness via selective augmentation*): Mixup of selected pairs.

    With probability ``within_label`` a row's partner has the same label and another domain, else the same domain and another
    label; the domain is the combination of the spurious attributes' classes. Without such a row in the batch a row is left
    as it is.
    """

    name = "lisa"
    title = "LISA"
    assumes = "the spurious attributes are known in training, and every label occurs with several of their values"
    needs = frozenset({"groups"})
    settings = LISASettings

    def partners(self, batch: Batch, noise: Draw) -> Tensor:
        labels, domains = batch["label"], batch["group"] % (self.sizes.groups // self.sizes.classes)
        which, within, across = uniform(noise(len(labels), 3)).unbind(1)
        return torch.where(which < self.options.within_label, partner(labels, domains, within), partner(domains, labels, across))


def partner(same: Tensor, other: Tensor, chance: Tensor) -> Tensor:
    """For each row a random row of equal ``same`` and different ``other``; the row itself where there is none. All ``(B,)``.

    Args:
        chance: uniform in [0, 1); which of the eligible rows.
    """
    width = int(other.max()) + 1
    cell = same * width + other
    order = cell.argsort(stable=True)  # rows of equal ``same`` stand together, and in them those of equal ``other``
    cells = cell[order]
    first, last = torch.searchsorted(cells, same * width), torch.searchsorted(cells, (same + 1) * width)
    own, beyond = torch.searchsorted(cells, cell), torch.searchsorted(cells, cell, right=True)
    eligible = (last - first) - (beyond - own)
    place = first + (chance * eligible).long().clamp(max=(eligible - 1).clamp(min=0))
    place = torch.where(place >= own, place + (beyond - own), place)
    found = order[place.clamp(max=len(order) - 1)]
    return torch.where(eligible > 0, found, torch.arange(len(same), device=same.device))


def uniform(normals: Tensor) -> Tensor:
    """Φ(z), uniform in [0, 1)."""
    return torch.special.ndtr(normals.double()).clamp(max=1 - 1e-12)


def beta(chance: Tensor, alpha: float) -> Tensor:
    """The quantile of Beta(α, α) at ``chance``, float32 of the same shape; exact, by scipy on the processor."""
    from scipy.special import betaincinv

    return torch.as_tensor(betaincinv(alpha, alpha, chance.cpu().numpy()), dtype=torch.float32, device=chance.device)

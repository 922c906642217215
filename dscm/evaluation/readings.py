"""What is read off images: by the data set's own measurement and by predictors. Each set of images is read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from datasets.base import CausalDataset
from dscm.evaluation.answers import Case
from mechanisms.anticausal.model import Predictors


@dataclass(frozen=True)
class Reading:
    """What one set of B images shows, on the CPU.

    Attributes:
        measured: ``{name: (B,)}`` without a network; empty if nothing can be measured.
        predicted: ``{name: (B,)}`` in physical units or class indices; empty without predictors.
        probabilities: ``{name: (B, K)}`` of the discrete ones.
        features: of the predictors, ``(B, F)``.
    """

    measured: Mapping[str, Tensor]
    predicted: Mapping[str, Tensor] = field(default_factory=dict)
    probabilities: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class CaseReadings:
    """What is read off the images of one case; ``truth`` is None where the true images are not known."""

    case: Case
    answer: Reading
    truth: Reading | None


@dataclass(frozen=True)
class ReferenceSet:
    """N other real images, and as many of the observed ones to compare with them, both drawn at random: neighbouring rows may show one
    subject.

    Attributes:
        chosen: positions ``(N,)`` among the observed rows.
        features, attributes: of the N other real images.
    """

    chosen: Tensor
    features: Tensor
    attributes: Mapping[str, Tensor]


class Reader:
    """Reads images ``(B, C, H, W)`` in [0, 1]."""

    def __init__(self, dataset: CausalDataset, predictors: Predictors | None, batch_size: int) -> None:
        self.dataset, self.predictors, self.batch_size = dataset, predictors, batch_size

    def __call__(self, images: Tensor) -> Reading:
        measured = self.measure(images)
        if self.predictors is None:
            return Reading(measured)
        home = next(self.predictors.parameters()).device
        with torch.no_grad():
            parts = [self.predictors.read(chunk.to(home)) for chunk in images.split(self.batch_size)]
        predicted, probabilities = ({name: torch.cat([part[k][name] for part in parts]).cpu() for name in parts[0][k]} for k in (0, 1))
        return Reading(measured, predicted, probabilities, torch.cat([part[2] for part in parts]).cpu())

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``{name: (B,)}`` as the data set measures it; classes as integers."""
        return {name: values.cpu() for name, values in self.dataset.measure(images.cpu()).items()}

    def features(self, images: Tensor) -> Tensor:
        """The predictors' features alone, ``(B, F)``."""
        home = next(self.predictors.parameters()).device
        with torch.no_grad():
            return torch.cat([self.predictors.features(chunk.to(home)).cpu() for chunk in images.split(self.batch_size)])

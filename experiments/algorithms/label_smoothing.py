"""Label smoothing: a classifier is not to be sure, whatever it sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from datasets.ranges import within
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy

Smoothing = within(0, 1, below=True)


@dataclass(frozen=True)
class LabelSmoothingSettings:
    """Of label smoothing."""

    smoothing: Smoothing[float] = 0.1
    """Share of the label that is spread evenly over all classes."""


class LabelSmoothing(Algorithm):
    """(1 − ε)·CE(f(x), y) + ε·(−1/K)·Σ_k log p_k (Szegedy et al. 2016, *Rethinking the Inception architecture*, section 7)."""

    name = "label-smoothing"
    title = "Label smoothing"
    assumes = "certainty is what misleads; it does not know of spurious attributes"
    settings = LabelSmoothingSettings
    stackable = True
    reads_features = True

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        logits = self.read(batch)
        risk, share = cross_entropy(logits, batch["label"]), self.options.smoothing
        return {"loss": (1 - share) * risk - share * logits.log_softmax(-1).mean(-1) + self.penalty_of_weights(), "risk": risk}

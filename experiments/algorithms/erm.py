"""Empirical risk minimisation, what all others are compared with."""

from __future__ import annotations

from torch import Tensor

from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy


class ERM(Algorithm):
    """mean_i w_i·CE(f(x_i), y_i), w = 1 unless the batch has weights (Vapnik 1998, *Statistical Learning Theory*)."""

    name = "erm"
    title = "ERM"
    assumes = "test data are distributed as training data are"
    reads_features = True
    stackable = True

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        losses = cross_entropy(self.read(batch), batch["label"])
        return {"loss": losses * batch.get("weight", 1.0) + self.penalty_of_weights(), "risk": losses}

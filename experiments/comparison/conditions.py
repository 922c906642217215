"""What all trials of a comparison have in common. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets.options import DataOptions
from mechanisms.image.config import ImageConfig
from mechanisms.training.config import TrainingConfig


@dataclass(frozen=True)
class Conditions:
    """Everything that a figure depends on beside the method and the seed; figures of other conditions do not belong into one table.

    Attributes:
        training: with a budget; its seed is the first one, and that of the questions.
        config: settings of image mechanisms that take such; those of other families have their own defaults.
        count: test images that every model is asked about, at most.
        draws: posterior draws of each counterfactual; 0 for none.
        predictor_steps: updates of the predictors.
        finetune_share: budget of a fine-tuning, as a share of the budget before.
        jobs: trainings at a time, which share the processor's cores.
        budgets: minutes, ascending, of error against training time; then they stand instead of the budget of ``training``.
    """

    data: DataOptions
    training: TrainingConfig
    config: ImageConfig = field(default_factory=ImageConfig)
    count: int = 1000
    draws: int = 32
    predictor_steps: int = 3000
    finetune_share: float = 1.0
    jobs: int = 1
    budgets: tuple[float, ...] = ()

"""Options of ``python -m dscm.finetune``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets.ranges import Sample
from dscm.finetuning.config import FinetuneConfig
from mechanisms.training.config import RunOptions, TrainingConfig

DEFAULTS = TrainingConfig(batch_size=32, learning_rate=1e-4, beta2=0.99, warmup=50, weight_decay=0.01, ema=0.99, keep="best")
DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class Options:
    """Train a run's image mechanism on its own counterfactuals, judged by its predictors, into another run; without a budget, 10 minutes.

    Attributes and predictors are copied, nothing of --run is changed. Before and after, the validation split is asked the same
    questions.
    """

    run: RunOptions = field(default_factory=RunOptions)
    into: Path | None = None
    """Run folder of the result; without it, that of --run with -finetuned appended."""
    training: TrainingConfig = DEFAULTS
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    teachers: Path | None = None
    """Another run folder whose predictors teach, such as ones of another seed; then those of --run, which judge, have taught nothing."""
    count: Sample[int | None] = None
    """How many validation images are asked before and after; without it 500, or as many as there are."""

"""Options of ``python -m dscm.evaluate``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.ranges import Sample, Seed, check_ranges
from dscm.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class Options:
    """Score a run's counterfactuals by every metric there is, each beside its floors.

    For instance: python -m dscm.evaluate --run runs/model --out metrics.json --interventions interventions.json
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms, and with predictors if there are to be figures that need them."""
    out: Path | None = None
    """File to write, with figures beside it; without it metrics.json in the run folder."""
    interventions: Path | None = None
    """File of the interventions, to be shared by all models: read if it exists, else drawn and written. Without it they are
    drawn, and written beside --out if no other ones are there."""
    split: Literal["train", "valid", "test"] | None = None
    """Where the observed images come from; without it test, or what the file of interventions says."""
    count: Sample[int | None] = None
    """How many images, from the first; without it 1000, or as many as the split has subjects or the file of interventions has."""
    seed: Seed[int | None] = None
    """Of interventions and noise; without it 0, or what the file of interventions says."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    config: EvaluationConfig = field(default_factory=EvaluationConfig)

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        self.config.check()
        check_ranges(self)

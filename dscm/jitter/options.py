"""Options of ``python -m dscm.calibrate``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.ranges import Sample, Seed


@dataclass(frozen=True)
class Options:
    """Estimate on the validation split how far counterfactual images miss the values asked for, and keep it in the run folder.

    Draws (dscm.counterfactual --draws, dscm.evaluate --draws) then vary accordingly; no true counterfactual is used.
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms."""
    count: Sample[int] = 500
    """Validation images; fewer if the split is smaller."""
    seed: Seed[int] = 0
    """Of the interventions."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

"""How a command line asks for the quickstart. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, Positive, Sample, Seed, check_ranges
from experiments.report.effort import SMOKE, Effort, full


@dataclass(frozen=True)
class Options:
    """From data to a report, in minutes: fits the mechanisms, merges them, draws counterfactuals and scores them."""

    data: DataOptions = field(default_factory=DataOptions)
    run: Path | None = None
    """Run folder; without it runs/quickstart, or runs/smoke with --smoke."""
    minutes: Positive[float] = 3.5
    """Time to train the image mechanism."""
    do: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Interventions of the grid, such as thickness=1.5,3; may be repeated. Without it, a low and a high value of each attribute."""
    count: AtLeastOne[int] = 5
    """Images in the grid."""
    scored: Sample[int] = 256
    """Test images that the counterfactuals are scored on."""
    resume: bool = True
    """Keep what the folder's trainings have reached and continue them; --no-resume refuses a folder that holds any."""
    overwrite: bool = False
    """Throw away the trainings that the folder holds and begin anew."""
    smoke: bool = False
    """A few updates of everything, to see that it runs."""
    seed: Seed[int] = 0
    """Of weights, noise and interventions."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the image mechanism's training; auto takes bf16 where the hardware has it."""

    @property
    def folder(self) -> Path:
        return self.run or Path("runs/smoke" if self.smoke else "runs/quickstart")

    @property
    def effort(self) -> Effort:
        return SMOKE if self.smoke else full(self.minutes, self.scored)

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        check_ranges(self)

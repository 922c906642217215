"""How a command line asks for a comparison. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, Draws, Positive, Range, Sample, Seeds, check_ranges, within
from datasets.words import listed_numbers
from experiments.comparison.conditions import Conditions
from mechanisms.image.config import ImageConfig
from mechanisms.image.options import DEFAULT_MINUTES, DEFAULTS
from mechanisms.training.config import TrainingConfig

Jobs = within(1, 1024)


@dataclass(frozen=True)
class Options:
    """Train every image mechanism under an equal budget, ask all the same questions, print and save one table.

    Without a budget, 10 minutes each. What is finished is not done again and what was interrupted goes on, so the same
    command can be called as often as needed, with more --seeds or other methods too. Training flags hold for all methods
    but the supervised bound, whose batches are its own; what a method is about overrides the flags of the mechanism.

    For instance: python -m experiments.compare --dataset morphomnist --seeds 3 --minutes 10 --jobs 2
    """

    data: DataOptions = field(default_factory=DataOptions)
    run: Path = Path("runs/compare")
    """Folder of the comparison; each <method>/seed-<n> in it is a run folder of its own."""
    out: Path | None = None
    """Folder for comparison.md, .csv, .json and .png; without it, that of --run."""
    only: str = ""
    """Methods, comma-separated; all but the fine-tuned one if empty."""
    finetuned: bool = False
    """Also train the HVAE on its own counterfactuals (counterfactual training)."""
    finetune_share: Positive[float] = 1.0
    """Budget of that counterfactual training, as a share of the budget that the HVAE has had before."""
    seeds: Seeds[int] = 3
    """How many seeds, from --seed on: of weights and training order, neither of the data nor of the questions."""
    count: Sample[int] = 1000
    """Test images that every model is asked about; fewer if the split is smaller."""
    draws: Draws[int] = 32
    """Posterior draws of a counterfactual, for calibration; 0 for none."""
    predictor_steps: AtLeastOne[int] = 3000
    """Updates of the predictors, which are trained once and judge all methods."""
    jobs: Jobs[int] = 1
    """Trainings at a time, each with its share of the processor's cores; a budget in minutes is equal only if the machine is
    as busy for one as for the other, so choose a divisor of the number of trainings, or a budget in --steps."""
    budgets: str = ""
    """Instead of one comparison, error against training time: budgets in minutes, comma-separated, such as 1,3,10. Each is a
    training of its own, since the learning rate follows the budget. Of the HVAE and the supervised bound, unless --only."""
    overwrite: bool = False
    """Throw away what the folder holds and begin anew."""
    training: TrainingConfig = DEFAULTS
    config: ImageConfig = field(default_factory=ImageConfig)

    @property
    def conditions(self) -> Conditions:
        """What all trials have in common."""
        return Conditions(self.data, self.training.or_budget(minutes=DEFAULT_MINUTES), self.config, self.count, self.draws,
                          self.predictor_steps, self.finetune_share, self.jobs, tuple(self.minutes()))

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        check_ranges(self)
        self.training.or_budget(minutes=DEFAULT_MINUTES).check()
        self.minutes()

    def minutes(self) -> list[float]:
        """``--budgets`` as numbers, ascending.

        Raises:
            UserError: for what is no positive number, or beside another budget.
        """
        values = sorted(listed_numbers(self.budgets, "--budgets", float))
        if wrong := [value for value in values if not Range(0, above=True).holds(value)]:
            raise UserError(f"--budgets {self.budgets!r}: {wrong[0]:g} minutes must be positive, and finite")
        if values and (self.training.minutes, self.training.steps, self.training.epochs) != (None, None, None):
            raise UserError("--budgets stands instead of --minutes, --steps and --epochs; give one of them")
        return values

"""One trial of a comparison: a method with one seed and one budget, and the run folder that it leaves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from datasets.base import CausalDataset
from datasets.options import DataOptions
from dscm.evaluation.questions import Questions
from experiments.comparison.conditions import Conditions
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.runs.files import replacing
from mechanisms.runs.folder import claim
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.state import CHECKPOINT
from pgm.options import FOLDER as ATTRIBUTES

QUESTIONS, SCORES, ATTRIBUTES_OF_SEEDS, TEACHERS = "interventions.json", "metrics.json", "attributes", "teachers"


@dataclass(frozen=True)
class Trial:
    """All that a process of its own needs to train and score one method.

    Attributes:
        root: folder of the comparison.
        method: name of one of :data:`experiments.comparison.methods.METHODS`.
        minutes: the budget, if not that of the conditions.
        trained: whether the method has weights, and so seeds and a budget.
        after: name of the method whose weights it starts from.
    """

    conditions: Conditions
    root: Path
    method: str
    seed: int = 0
    minutes: float | None = None
    trained: bool = True
    after: str = ""

    @property
    def title(self) -> str:
        return self.method + (f", seed {self.seed}" if self.trained else "") + (f", {self.minutes:g} min" if self.minutes else "")

    @property
    def folder(self) -> Path:
        return self._folder(self.method, self.trained)

    @property
    def source(self) -> Path:
        """Folder of the trial that this one starts from."""
        return self._folder(self.after, True)

    def _folder(self, method: str, trained: bool) -> Path:
        root = self.root / f"{self.minutes:g}min" if self.minutes else self.root
        return root / method / (f"seed-{self.seed}" if trained else "once")

    @property
    def training(self) -> TrainingConfig:
        """The common training with this budget and this seed."""
        common = self.conditions.training
        return replace(common, seed=self.seed, **({"minutes": self.minutes} if self.minutes else {}))

    @property
    def dataset(self) -> CausalDataset:
        return _opened(self.conditions.data)

    @cached_property
    def questions(self) -> Questions:
        return Questions.load(self.root / QUESTIONS, self.dataset)

    def into(self, folder: str) -> RunOptions:
        """To go on with the training in this folder if there is one."""
        return RunOptions(self.folder, resume=(self.folder / folder / CHECKPOINT).exists())

    def adopt(self) -> None:
        """Copy what is shared — the seed's attributes, the predictors — so that the folder is a whole run of its own."""
        claim(self.folder, self.dataset, self.conditions.data)
        shared = self.root / ATTRIBUTES_OF_SEEDS / f"seed-{self.seed}" / ATTRIBUTES, self.root / PREDICTORS
        for path in (p for folder in shared for p in folder.iterdir()):
            if path.is_file() and path.name != CHECKPOINT and not path.name.startswith("."):
                with replacing(self.folder / path.parent.name / path.name) as temporary:
                    shutil.copyfile(path, temporary)


@lru_cache(maxsize=1)
def _opened(data: DataOptions) -> CausalDataset:
    """One copy in memory, whoever asks."""
    return data.open()

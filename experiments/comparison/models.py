"""Who takes part in a comparison: image mechanisms, and the bounds that they are read against."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from datasets.base import CausalDataset
from datasets.options import DataOptions
from datasets.schema import SchemaError
from datasets.words import listed
from dscm.capabilities import Model
from dscm.evaluation.questions import Questions
from dscm.finetuning import run as finetune
from dscm.jitter.run import calibrate_run
from dscm.model import DSCM
from experiments.comparison.bounds import Identity, Truth
from experiments.comparison.options import Options
from experiments.comparison.supervised import FOLDER as SUPERVISED
from experiments.comparison.supervised import Supervised, train_supervised
from mechanisms import train as image
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.image.registry import FOLDER as IMAGE
from mechanisms.runs.files import RunError, replacing
from mechanisms.runs.folder import claim
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.devices import find_device
from mechanisms.training.state import CHECKPOINT
from pgm.options import FOLDER as ATTRIBUTES

QUESTIONS, SCORES, ATTRIBUTES_OF_SEEDS, TEACHERS = "interventions.json", "metrics.json", "attributes", "teachers"


@dataclass(frozen=True)
class Entry:
    """One contestant with one seed and one budget: all that a process of its own needs to train it.

    Attributes:
        minutes: the budget, if not that of ``options``.
    """

    options: Options
    name: str
    seed: int = 0
    minutes: float | None = None

    @property
    def contestant(self) -> Contestant:
        return CONTESTANTS[self.name]

    @property
    def title(self) -> str:
        return self.name + (f", seed {self.seed}" if self.contestant.trained else "") + (f", {self.minutes:g} min" if self.minutes else "")

    @property
    def folder(self) -> Path:
        return self._folder(self.name)

    def _folder(self, name: str) -> Path:
        root = self.options.run / f"{self.minutes:g}min" if self.minutes else self.options.run
        return root / name / (f"seed-{self.seed}" if CONTESTANTS[name].trained else "once")

    @property
    def source(self) -> Path:
        """Folder of the contestant that this one starts from."""
        return self._folder(self.contestant.after)

    @property
    def training(self) -> TrainingConfig:
        """The common training with this budget and this seed."""
        given = self.options.training
        given = replace(given, minutes=self.minutes) if self.minutes else given.or_budget(minutes=image.DEFAULT_MINUTES)
        return replace(given, seed=self.seed)

    @property
    def dataset(self) -> CausalDataset:
        return _opened(self.options.data)

    @cached_property
    def questions(self) -> Questions:
        return Questions.load(self.options.run / QUESTIONS, self.dataset)

    def into(self, folder: str) -> RunOptions:
        """To go on with the training in this folder if there is one."""
        return RunOptions(self.folder, resume=(self.folder / folder / CHECKPOINT).exists())

    def adopt(self) -> None:
        """Copy what is shared — the seed's attributes, the predictors — so that the folder is a whole run of its own."""
        claim(self.folder, self.dataset, self.options.data)
        shared = self.options.run / ATTRIBUTES_OF_SEEDS / f"seed-{self.seed}" / ATTRIBUTES, self.options.run / PREDICTORS
        for path in (p for folder in shared for p in folder.iterdir()):
            if path.is_file() and path.name != CHECKPOINT and not path.name.startswith("."):
                with replacing(self.folder / path.parent.name / path.name) as temporary:
                    shutil.copyfile(path, temporary)


@lru_cache(maxsize=1)
def _opened(data: DataOptions) -> CausalDataset:
    """One copy in memory, whoever asks."""
    return data.open()


@dataclass(frozen=True)
class Contestant:
    """One who takes part.

    Attributes:
        about: what it is, in one line of the table's legend.
        model: trains it, or goes on with its training, and returns it.
        trained: whether it has weights, and so seeds and a budget.
        bound: whether it is compared with, but is no mechanism: it is told the truth, or does nothing.
        needs_truth: whether it takes a data set that knows its own process.
        after: the contestant that it starts from.
        folder: where its training's files are, in its run folder.
    """

    about: str
    model: Callable[[Entry], Model]
    trained: bool = True
    bound: bool = False
    needs_truth: bool = False
    after: str = ""
    folder: str = IMAGE


def mechanism(name: str, **changes: Any) -> Callable[[Entry], Model]:
    """Trains this image mechanism with the options' configuration, changed by ``changes``, and merges it with the seed's attributes."""

    def train(entry: Entry) -> Model:
        entry.adopt()
        config = replace(entry.options.config, **changes)
        image.train_image(entry.dataset, image.Options(entry.options.data, entry.into(IMAGE), entry.training, name, config=config))
        return merged(entry)

    return train


def merged(entry: Entry) -> DSCM:
    """The run in the entry's folder; if draws are asked for, calibrated on the validation split first, like any run of a user's."""
    if entry.options.draws:
        calibrate_run(entry.folder, device=entry.training.device)
    return DSCM.load(entry.folder, find_device(entry.training.device))


def finetuned(entry: Entry) -> Model:
    """Counterfactual training of another contestant's weights, for a share of its budget, at that training's own learning rate."""
    given = {name: getattr(entry.training, name) for name in ("epochs", "minutes", "steps")}
    share = {name: value * entry.options.finetune_share for name, value in given.items() if value}
    if "steps" in share:
        share["steps"] = math.ceil(share["steps"])
    common = {name: getattr(entry.training, name) for name in ("seed", "device", "precision")}
    resume = (entry.folder / finetune.RECORD).exists()
    training = replace(finetune.DEFAULTS, **common, **share)
    where, teachers = RunOptions(entry.source, resume=resume), entry.options.run / TEACHERS
    finetune.finetune(where, entry.folder, training, teachers=teachers)
    return merged(entry)


def supervised(entry: Entry) -> Model:
    network = train_supervised(entry.dataset, entry.training, entry.into(SUPERVISED))
    return Supervised(network, Truth(entry.dataset, entry.questions))


CONTESTANTS: Mapping[str, Contestant] = {
    "vae": Contestant("one latent vector, the field's baseline, with the read-out and the parents' places of hvae", mechanism("vae")),
    "hvae": Contestant("latents at every resolution, exogenous prior, collinear parents in the read-out only", mechanism("hvae")),
    "hvae-all-parents": Contestant("the same with all parents acting on the features, as in published ones",
                                   mechanism("hvae", collinear=1.0)),
    "hvae-mediator": Contestant("latents between parents and image: a learned prior of z given the parents",
                                mechanism("hvae", prior="mediator")),
    "hvae-logistic": Contestant("pixels from a mixture of logistics instead of a Gaussian",
                                mechanism("hvae", likelihood="logistic-mixture")),
    "hvae-finetuned": Contestant("hvae, then counterfactual training, whose updates and minutes are on top; weights best on valid; "
                                 "its teachers are not its judges, but have seen rendered interventions", finetuned, after="hvae"),
    "supervised": Contestant("told true pairs (x, pa, pa*) → x* of the training rows, and true parents", supervised, bound=True,
                             needs_truth=True, folder=SUPERVISED),
    "identity": Contestant("copies x", lambda entry: Identity(entry.dataset.graph), trained=False, bound=True),
    "truth": Contestant("the known process itself", lambda entry: Truth(entry.dataset, entry.questions), trained=False, bound=True,
                        needs_truth=True),
}
CURVE = ("hvae", "supervised")  # of which error against time is shown unless others are named


def chosen(options: Options, dataset: CausalDataset) -> tuple[list[str], dict[str, str]]:
    """Names of those who take part, in the order of the registry, and who cannot, with the reason.

    Raises:
        UserError: for an unknown name, or one that was asked for and cannot take part.
    """
    asked = listed(options.only, "--only", CONTESTANTS)
    names = asked or (list(CURVE) if options.budgets else [name for name, c in CONTESTANTS.items() if not c.after])
    names += ["hvae-finetuned"] if options.finetuned else []
    names += [CONTESTANTS[name].after for name in names if CONTESTANTS[name].after]
    if options.budgets:
        names = [name for name in names if CONTESTANTS[name].trained]
    known = any(dataset.has_truth([v.name]) for v in dataset.schema.attributes)
    absent = {} if known else {name: f"{dataset.title} does not know its own process" for name in names if CONTESTANTS[name].needs_truth}
    if refused := [name for name in asked if name in absent]:
        raise SchemaError(f"{', '.join(refused)} cannot take part: {absent[refused[0]]}; leave it out of --only")
    if not (present := [name for name in CONTESTANTS if name in names and name not in absent]):
        raise RunError("--budgets needs a contestant that is trained; name one with --only")
    return present, absent

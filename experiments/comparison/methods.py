"""What is compared: every image mechanism that there is, variants of them, and the bounds that they are read against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.base import CausalDataset
from datasets.schema import SchemaError
from datasets.words import listed
from dscm.evaluation.answers import Model
from dscm.finetuning.options import DEFAULTS as FINETUNING
from dscm.finetuning.run import RECORD, finetune
from dscm.jitter.run import calibrate_run
from dscm.model import DSCM
from experiments.comparison.bounds import Identity, Truth
from experiments.comparison.conditions import Conditions
from experiments.comparison.supervised import FOLDER as SUPERVISED
from experiments.comparison.supervised import Supervised, train_supervised
from experiments.comparison.trial import TEACHERS, Trial
from mechanisms.image.base import ImageMechanism
from mechanisms.image.config import ImageConfig
from mechanisms.image.fit import train_image
from mechanisms.image.registry import FOLDER as IMAGE
from mechanisms.image.registry import image_mechanisms
from mechanisms.runs.files import RunError
from mechanisms.training.config import RunOptions
from mechanisms.training.devices import find_device

_ABOUT = {  # in the tables' order; of mechanisms that are not named here, the first line of their docstring, after these
    "vae": "one latent vector, the field's baseline, with the read-out and the parents' places of hvae",
    "hvae": "latents at every resolution, exogenous prior, collinear parents in the read-out only"}
_VARIANTS: Mapping[str, tuple[str, dict[str, Any], str]] = {  # name → mechanism, the settings that differ, what it is
    "hvae-all-parents": ("hvae", {"collinear": 1.0}, "the same with all parents acting on the features, as in published ones"),
    "hvae-mediator": ("hvae", {"prior": "mediator"}, "latents between parents and image: a learned prior of z given the parents"),
    "hvae-logistic": ("hvae", {"likelihood": "logistic-mixture"}, "pixels from a mixture of logistics instead of a Gaussian")}


@dataclass(frozen=True)
class Method:
    """One that is compared.

    Attributes:
        about: what it is, in one line of the table's legend.
        model: trains it, or goes on with its training, and returns it.
        trained: whether it has weights, and so seeds and a budget.
        bound: whether it is compared with, but is no mechanism: it is told the truth, or does nothing.
        needs_truth: whether it takes a data set that knows its own process.
        after: the method that it starts from.
        folder: where its training's files are, in its run folder.
    """

    about: str
    model: Callable[[Trial], Model]
    trained: bool = True
    bound: bool = False
    needs_truth: bool = False
    after: str = ""
    folder: str = IMAGE


# ------------------------------------------------------------------------------------------------ how they are trained
def mechanism(name: str, **changes: Any) -> Callable[[Trial], Model]:
    """Trains this image mechanism with the common settings, changed by ``changes``, and merges it with the seed's attributes.

    A mechanism of another family, whose settings are of another kind, has that kind's defaults.
    """

    def train(trial: Trial) -> Model:
        trial.adopt()
        config = trial.conditions.config if image_mechanisms()[name].settings is ImageConfig else ImageConfig()
        train_image(trial.dataset, trial.conditions.data, trial.into(IMAGE), trial.training, name, replace(config, **changes))
        return merged(trial)

    return train


def merged(trial: Trial) -> DSCM:
    """The run in the trial's folder; if draws are asked for, calibrated on the validation split first, like any run of a user's."""
    if trial.conditions.draws:
        calibrate_run(trial.folder, device=trial.training.device)
    return DSCM.load(trial.folder, find_device(trial.training.device))


def finetuned(trial: Trial) -> Model:
    """Counterfactual training of another method's weights, for a share of its budget, at that training's own learning rate."""
    budget = {name: getattr(trial.training, name) for name in ("epochs", "minutes", "steps")}
    share = {name: value * trial.conditions.finetune_share for name, value in budget.items() if value}
    if "steps" in share:
        share["steps"] = math.ceil(share["steps"])
    common = {name: getattr(trial.training, name) for name in ("seed", "device", "precision")}
    resume = (trial.folder / RECORD).exists()
    training = replace(FINETUNING, **common, **share)
    where, teachers = RunOptions(trial.source, resume=resume), trial.root / TEACHERS
    finetune(where, trial.folder, training, teachers=teachers)
    return merged(trial)


def supervised(trial: Trial) -> Model:
    """The network that is told true pairs, within the trial's budget."""
    network = train_supervised(trial.dataset, trial.training, trial.into(SUPERVISED))
    return Supervised(network, Truth(trial.dataset, trial.questions))


# ------------------------------------------------------------------------------------------------ all of them
def find_methods(mechanisms: Mapping[str, type[ImageMechanism]]) -> dict[str, Method]:
    """Name → method, in the tables' order: each of these mechanisms, variants of them, and bounds."""
    words = {name: _ABOUT.get(name) or (kind.__doc__ or name).strip().splitlines()[0].rstrip(".") for name, kind in mechanisms.items()}
    order = sorted(words, key=lambda name: [*_ABOUT, name].index(name))
    return {
        **{name: Method(words[name], mechanism(name)) for name in order},
        **{name: Method(about, mechanism(kind, **changes)) for name, (kind, changes, about) in _VARIANTS.items() if kind in words},
        "hvae-finetuned": Method("hvae, then counterfactual training, whose updates and minutes are on top; weights best on valid; "
                                 "its teachers are not its judges, but have seen rendered interventions", finetuned, after="hvae"),
        "supervised": Method("told true pairs (x, pa, pa*) → x* of the training rows, and true parents", supervised, bound=True,
                             needs_truth=True, folder=SUPERVISED),
        "identity": Method("copies x", lambda trial: Identity(trial.dataset.graph), trained=False, bound=True),
        "truth": Method("the known process itself", lambda trial: Truth(trial.dataset, trial.questions), trained=False, bound=True,
                        needs_truth=True),
    }


METHODS = find_methods(image_mechanisms())
CURVE = ("hvae", "supervised")  # of which error against time is shown unless others are named


def trial_of(method: str, conditions: Conditions, root: Path, seed: int = 0, minutes: float | None = None) -> Trial:
    """The trial of a method of this name, in the comparison's folder ``root``."""
    return Trial(conditions, root, method, seed, minutes, METHODS[method].trained, METHODS[method].after)


def chosen(only: str, dataset: CausalDataset, *, finetuned: bool = False, curve: bool = False) -> tuple[list[str], dict[str, str]]:
    """Names of the methods that are compared, in the order of the registry, and those that cannot be, with the reason.

    Args:
        only: names with commas between; all but the fine-tuned one if empty, of a ``curve`` those of :data:`CURVE`.
        finetuned: whether the fine-tuned one is compared too.
        curve: whether error is shown against training time, which only trained ones have.

    Raises:
        UserError: for an unknown name, or one that was asked for and cannot take part.
    """
    asked = listed(only, "--only", METHODS)
    names = [*(asked or (CURVE if curve else [name for name, method in METHODS.items() if not method.after]))]
    names += ["hvae-finetuned"] * finetuned
    names += [METHODS[name].after for name in names if METHODS[name].after]
    if curve:
        names = [name for name in names if METHODS[name].trained]
    has_truth = any(dataset.has_truth([v.name]) for v in dataset.schema.attributes)
    absent = {} if has_truth else {name: f"{dataset.title} does not know its own process" for name in names if METHODS[name].needs_truth}
    if refused := [name for name in asked if name in absent]:
        raise SchemaError(f"{', '.join(refused)} cannot take part: {absent[refused[0]]}; leave it out of --only")
    if not (present := [name for name in METHODS if name in names and name not in absent]):
        raise RunError("--budgets needs a method that is trained; name one with --only")
    return present, absent

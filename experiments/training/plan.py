"""What an algorithm is trained with: flags win over the data set's recipe, that over the algorithm's defaults, these over ours."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from datasets.base import CausalDataset
from datasets.errors import UserError, valid_are
from datasets.schema import SchemaError
from datasets.words import convert
from experiments.algorithms.base import Algorithm
from experiments.algorithms.registry import ALGORITHMS, algorithm, spelled
from experiments.networks.config import ClassifierConfig
from experiments.networks.registry import ALIASES, NETWORKS
from experiments.training.options import DEFAULT_EPOCHS, DEFAULTS, NEVER, TrainingFlags
from mechanisms.training.config import TrainingConfig

_BUDGETS = ("epochs", "steps", "minutes")
_EVERY = "*"


@dataclass(frozen=True)
class Plan:
    """One algorithm with all that it is trained with.

    Attributes:
        settings: of the algorithm's own dataclass.
        origin: field → ``flag``, ``recipe`` or ``algorithm``, of those that are not our general defaults.
    """

    kind: type[Algorithm]
    classifier: ClassifierConfig
    training: TrainingConfig
    settings: Any
    origin: Mapping[str, str]

    @property
    def needs(self) -> frozenset[str]:
        """What the algorithm needs with these settings."""
        return self.kind.needs_of(self.settings)

    def in_words(self, rows: int) -> str:
        """``field value (origin)``, … of all that is no general default, and the algorithm's own settings; without what is empty.

        Args:
            rows: that are trained on.
        """
        values = {**asdict(self.classifier), **asdict(self.training), **asdict(self.settings)}
        shown = [name for name in values if name in self.origin or hasattr(self.settings, name) or name in ("network", "batch_size")]
        shown += [name for name in _BUDGETS if values[name] is not None and name not in shown]
        texts = {name: f"{value:.5g}" if isinstance(value, float) else str(value) for name, value in values.items()}
        texts |= {name: "none" for name in ("clip", "skip") if values[name] >= NEVER}
        texts |= {"batch_size": "whole split"} if values["batch_size"] >= rows else {}
        marks = {name: f" ({source})" for name, source in self.origin.items()}
        return ", ".join(f"{name.replace('_', '-')} {texts[name]}{marks.get(name, '')}" for name in shown if texts[name])


def resolve(name: str, dataset: CausalDataset, flags: TrainingFlags = TrainingFlags(), settings: Sequence[str] = (), seed: int = 0) -> Plan:
    """What the algorithm of this name is trained with on this data set.

    A network of ours that a flag names takes no ``weights`` and ``frozen`` from a recipe, which mean another network's.

    Args:
        settings: ``KEY=VALUE`` or ``ALGORITHM.KEY=VALUE``; the former holds for every algorithm that has such a setting.

    Raises:
        RunError: for an unknown algorithm.
        UserError: for an unknown setting or a value that is none.
        SchemaError: for a recipe of the data set that sets what does not exist.
    """
    kind = algorithm(name)
    name = kind.name
    possible = {f.name for config in (kind.settings, ClassifierConfig, TrainingConfig) for f in fields(config)}
    recipe = {**_recipe(dataset, _EVERY, possible), **_recipe(dataset, name, possible)}
    layers = (("algorithm", dict(kind.defaults)), ("recipe", recipe), ("flag", {**_settings(settings, kind), **flags.given()}))
    values: dict[str, Any] = {"epochs": DEFAULT_EPOCHS}
    origin: dict[str, str] = {}
    for source, given in layers:
        if any(budget in given for budget in _BUDGETS):  # a budget replaces one in other units
            for budget in _BUDGETS:
                values.pop(budget, None)
                origin.pop(budget, None)
        values.update(given)
        origin.update({key: source for key in given if key != "device"})
    if origin.get("network") == "flag" and values["network"] in (*NETWORKS, *ALIASES):  # which have no weights to begin with
        for key in ("weights", "frozen"):
            if origin.get(key) == "recipe":
                del values[key], origin[key]
    try:
        training = replace(DEFAULTS, **_of(values, TrainingConfig), seed=seed)
        plan = Plan(kind, ClassifierConfig(**_of(values, ClassifierConfig)), training, kind.settings(**_of(values, kind.settings)), origin)
        training.check()
        plan.classifier.check()
        kind.check(plan.settings)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return plan


def _of(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def _recipe(dataset: CausalDataset, name: str, known: set[str]) -> dict[str, Any]:
    """The recipe of that name; of the one for all algorithms, only what this one has."""
    recipe = {key: value for of, given in dataset.recipes.items() if spelled(of) == name for key, value in given.items()}
    everyone = {f.name for kind in ALGORITHMS.values() for f in fields(kind.settings)} if name == _EVERY else set()
    if unknown := [key for key in recipe if key not in known | everyone]:
        raise SchemaError(f"{dataset.title}: the recipe {name!r} sets {', '.join(unknown)}, which {name} has not; valid are "
                          f"{', '.join(sorted(known))}")
    return {key: value for key, value in recipe.items() if key in known}


def _settings(given: Sequence[str], kind: type[Algorithm]) -> dict[str, Any]:
    """Those of ``KEY=VALUE`` that are for this algorithm, as the types that its settings declare."""
    hints, own = typing.get_type_hints(kind.settings), [f.name for f in fields(kind.settings)]
    values: dict[str, Any] = {}
    for text in sorted(given, key=lambda text: "." in text.partition("=")[0]):  # what names an algorithm wins
        key, separator, value = text.partition("=")
        owner, dot, key = key.rpartition(".")
        key = key.replace("-", "_")
        if not (key and separator):
            raise UserError(f"--set {text!r} is not KEY=VALUE")
        if dot and key not in (theirs := [f.name for f in fields(algorithm(owner).settings)]):
            raise UserError(f"--set {text}: {owner} has no setting {key!r}; {valid_are(theirs, key)}")
        if not dot and not any(key in {f.name for f in fields(k.settings)} for k in ALGORITHMS.values()):
            everyone = sorted({f"{k.name}.{f.name}" for k in ALGORITHMS.values() for f in fields(k.settings)})
            raise UserError(f"--set {text}: no algorithm has a setting {key!r}; {valid_are(everyone, key)}")
        if key in own and spelled(owner) in ("", kind.name):
            values[key] = convert(value, hints[key], f"--set {text}")
    return values

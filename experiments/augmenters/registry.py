"""The augmenters there are, by kind and name.

Every file of this folder is looked at: a new augmenter is one new file, or one new class in a file, with a ``kind`` and a ``name``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

import experiments.augmenters
from datasets.errors import valid_are
from experiments.augmenters.base import Augmenter
from mechanisms.runs.files import RunError

NONE = "none"


def find_augmenters() -> dict[str, dict[str, type[Augmenter]]]:
    """Kind → name → class, in the order of files and, within each, of definitions."""
    kinds: dict[str, dict[str, type[Augmenter]]] = {"counterfactual": {}, "factual": {}}
    for module in pkgutil.iter_modules(experiments.augmenters.__path__, "experiments.augmenters."):
        if module.name != __name__:
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, Augmenter) and value.name and value.__module__ == module.name:
                    kinds[value.kind][value.name] = value
    return kinds


KINDS = find_augmenters()
COUNTERFACTUAL, FACTUAL = KINDS["counterfactual"], KINDS["factual"]


def augmenter(kind: str, name: str, **options: Any) -> Augmenter | None:
    """The augmenter of that kind and name with these options; None for ``none``.

    Raises:
        RunError: for an unknown kind, name or option; the message lists all.
        UserError: for an option whose value makes no sense.
    """
    if kind not in KINDS:
        raise RunError(f"unknown kind of augmenter {kind!r}; {valid_are(KINDS, kind)}")
    if name == NONE:
        return None
    if name not in KINDS[kind]:
        raise RunError(f"unknown {kind} augmenter {name!r}; {valid_are((*KINDS[kind], NONE), name)}")
    chosen = KINDS[kind][name]
    valid = [field.name for field in fields(chosen)]
    if unknown := [option for option in options if option not in valid]:
        raise RunError(f"the {kind} augmenter {name!r} has no option {', '.join(unknown)}; {valid_are(valid, unknown[0])}")
    return chosen(**options)

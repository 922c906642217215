"""From a name to an algorithm. Every file of this folder is looked at: a new algorithm is one new file."""

from __future__ import annotations

import importlib
import pkgutil

import experiments.algorithms
from datasets.errors import valid_are
from experiments.algorithms.base import Algorithm
from mechanisms.runs.files import RunError


def _find() -> dict[str, type[Algorithm]]:
    kinds = {}
    for module in pkgutil.iter_modules(experiments.algorithms.__path__):
        if module.name == __name__.rsplit(".", 1)[-1]:
            continue
        for value in vars(importlib.import_module(f"experiments.algorithms.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Algorithm) and value.name:
                kinds[value.name] = value
    return {name: kinds[name] for name in sorted(kinds, key=lambda name: (name != "erm", name))}


ALGORITHMS: dict[str, type[Algorithm]] = _find()


def spelled(name: str) -> str:
    """An algorithm's name as it is registered: ``-`` between words, where ``_`` is accepted too, as in flags."""
    return name.strip().replace("_", "-")


def algorithm(name: str) -> type[Algorithm]:
    """The class of that name.

    Raises:
        RunError: for an unknown name; the message lists all.
    """
    if spelled(name) not in ALGORITHMS:
        raise RunError(f"unknown algorithm {name!r}; {valid_are(ALGORITHMS, spelled(name))}")
    return ALGORITHMS[spelled(name)]

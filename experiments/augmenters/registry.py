"""From a name to an augmenter."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from datasets.errors import valid_are
from experiments.augmenters import counterfactual, factual
from experiments.augmenters.base import Augmenter
from mechanisms.runs.files import RunError

NONE = "none"


def _find(module: Any) -> dict[str, type[Augmenter]]:
    """All classes of a module that have a name, in the order in which they are defined."""
    return {value.name: value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Augmenter) and value.name}


COUNTERFACTUAL: dict[str, type[Augmenter]] = _find(counterfactual)
FACTUAL: dict[str, type[Augmenter]] = _find(factual)
KINDS = {"counterfactual": COUNTERFACTUAL, "factual": FACTUAL}


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
    found = KINDS[kind][name]
    known = [field.name for field in fields(found)]
    if unknown := [option for option in options if option not in known]:
        raise RunError(f"the {kind} augmenter {name!r} has no option {', '.join(unknown)}; {valid_are(known, unknown[0])}")
    return found(**options)

"""All families of metrics and all metrics, in the order of tables.

Every file of this folder is looked at: a new family is one new file with ``METRICS``, see :func:`dscm.metrics.score.named`, and
``scores(inputs) → Iterator[Score]`` of a :class:`dscm.evaluation.inputs.MetricInputs`. Where it says nothing else, ``PART``, its name
for ``--parts``, is that of the file, and ``RANK``, its place in tables, is the last.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

import dscm.metrics
from datasets.errors import UserError, valid_are
from dscm.metrics.score import Metric, Score
from mechanisms.runs.files import RunError


@dataclass(frozen=True)
class Family:
    """One file of metrics.

    Attributes:
        part: its name for ``--parts``.
        scores: all scores of an evaluation; what cannot be computed goes into ``inputs.missing``.
        rank: its place in tables.
    """

    part: str
    metrics: Mapping[str, Metric]
    scores: Callable[[Any], Iterator[Score]]
    rank: float


def families(parts: Collection[str] = ()) -> list[Family]:
    """The families by rank, then by name; only those named, if any are.

    Raises:
        UserError: for an unknown name; the valid ones are listed.
        RunError: for a name of a family or of a metric that two files claim.
    """
    known = _found(tuple(dscm.metrics.__path__))
    if unknown := [part for part in parts if part not in known]:
        raise UserError(f"--parts {unknown[0]} is unknown; {valid_are(known, unknown[0])}")
    return sorted((family for family in known.values() if not parts or family.part in parts), key=lambda f: (f.rank, f.part))


@cache
def _found(folders: tuple[str, ...]) -> dict[str, Family]:
    """Part → family, of all files of these folders."""
    known: dict[str, Family] = {}
    claimed: set[str] = set()
    for entry in pkgutil.iter_modules(folders, "dscm.metrics."):
        if entry.name == __name__ or not hasattr(module := importlib.import_module(entry.name), "scores"):
            continue
        family = Family(getattr(module, "PART", entry.name.rpartition(".")[2]), module.METRICS, module.scores,
                        getattr(module, "RANK", math.inf))
        if twice := claimed & {family.part, *family.metrics}:
            raise RunError(f"{module.__file__}: {twice.pop()} is the name of another family or metric; choose another one")
        claimed |= {family.part, *family.metrics}
        known[family.part] = family
    return known


def metrics() -> dict[str, Metric]:
    """Name → metric, in the order of tables."""
    return {name: metric for family in families() for name, metric in family.metrics.items()}


def summarise(metric: str, values: Tensor | float, **about: Any) -> Score:
    """:meth:`dscm.metrics.score.Metric.score` of the metric with this name.

    Raises:
        RunError: for an unknown metric, no image at all, NaN.
    """
    if metric not in (known := metrics()):
        raise RunError(f"unknown metric {metric!r}; {valid_are(known, metric)}")
    return known[metric].score(values, **about)


METRICS = metrics()

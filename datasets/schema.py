"""The causal graph that connects what is observed: a checked, topologically sorted tuple of variables.

What one variable is stands in :mod:`datasets.variable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datasets.errors import SchemaError, did_you_mean
from datasets.variable import Statistics, Variable, rounded

__all__ = ["Graph", "SchemaError", "Statistics", "Variable", "encode_parents"]


class Graph:
    """A checked causal graph: attributes in topological order and the image that they cause.

    Args:
        variables: in any order; exactly one of kind ``image``, which has no children.

    >>> graph = Graph([Variable("image", "image", ("age", "sex"), shape=(1, 8, 8)), Variable("age", "real", ("sex",)),
    ...                Variable("sex", "binary")])
    >>> graph
    Graph(· → sex; sex → age; age, sex → image)
    >>> sorted(graph.descendants(["sex"]))
    ['age', 'image']

    Raises:
        SchemaError: for duplicates, unknown parents, cycles, or an image that is missing, doubled or a parent.
    """

    def __init__(self, variables: Iterable[Variable]) -> None:
        variables = _listed(variables)
        names = [v.name for v in variables]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise SchemaError(f"variable declared twice: {', '.join(twice)}")
        images = [v for v in variables if v.kind == "image"]
        if len(images) != 1:
            raise SchemaError(f"a graph needs exactly one image variable, got {len(images)}: {[v.name for v in images]}")
        for variable in variables:
            for parent in variable.parents:
                if parent not in names:
                    raise SchemaError(f"{variable.name!r} has the unknown parent {parent!r}; known are {', '.join(names)}")
                if parent == images[0].name:
                    raise SchemaError(f"{variable.name!r} has the image {parent!r} as parent; an image has no children here")
        self.image = images[0]
        self._variables = {v.name: v for v in self._sorted(variables)}

    @staticmethod
    def _sorted(variables: tuple[Variable, ...]) -> list[Variable]:
        waiting, done = {v.name: v for v in variables}, {}
        while waiting:
            ready = [v for v in waiting.values() if all(p in done for p in v.parents)]
            if not ready:
                raise SchemaError(f"the graph has a cycle among {', '.join(sorted(waiting))}")
            for variable in ready:
                done[variable.name] = waiting.pop(variable.name)
        return list(done.values())

    def __getitem__(self, name: str) -> Variable:
        try:
            return self._variables[name]
        except KeyError:
            meant = did_you_mean(self._variables, name)
            raise SchemaError(f"unknown variable {name!r}; the graph has {', '.join(self._variables)}{meant}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._variables

    def __iter__(self):
        return iter(self._variables.values())

    def __repr__(self) -> str:
        return "Graph(" + "; ".join(f"{', '.join(v.parents) or '·'} → {v.name}" for v in self) + ")"

    @property
    def attributes(self) -> tuple[Variable, ...]:
        """Every variable but the image, causes before effects."""
        return tuple(v for v in self if v.kind != "image")

    @property
    def image_parents(self) -> tuple[Variable, ...]:
        """The direct causes of the image, in alphabetical order."""
        return tuple(self[p] for p in self.image.parents)

    def parents(self, name: str) -> tuple[Variable, ...]:
        return tuple(self[p] for p in self[name].parents)

    def descendants(self, names: Iterable[str]) -> frozenset[str]:
        """Names of all variables that an intervention on ``names`` can change, ``names`` excluded unless downstream."""
        sources, found = {self[n].name for n in names}, set()
        for variable in self:
            if any(p in sources or p in found for p in variable.parents):
                found.add(variable.name)
        return frozenset(found)

    def fitted(self, attributes: Mapping[str, Tensor]) -> Graph:
        """This graph with statistics of the training split's attributes."""
        graph = Graph(v if v.kind == "image" else v.fitted(attributes[v.name]) for v in self)
        return Graph(replace(v, statistics=replace(v.statistics, explained=graph._explained(v, attributes))) for v in graph)

    def _explained(self, variable: Variable, attributes: Mapping[str, Tensor]) -> float:
        causes = [p for p in self.image_parents if variable.name in self.descendants([p.name])]
        if not causes or variable.kind == "image":
            return 0.0
        effect = (variable.encode(attributes[variable.name]).double() if variable.discrete
                  else variable.unconstrain(attributes[variable.name].double()).unsqueeze(1))
        columns = [torch.ones(len(effect), 1, dtype=torch.float64)]
        columns += [cause.encode(attributes[cause.name]).double() for cause in causes]
        columns += [cause.unconstrain(attributes[cause.name].double()).unsqueeze(1) for cause in causes if cause.continuous]
        design = torch.cat(columns, 1)
        residual = effect - design @ torch.linalg.lstsq(design, effect, driver="gelsd").solution
        variance = float(effect.var(0).sum())
        return rounded(1 - residual.var(0).sum() / variance) if variance > 0 else 0.0

    def check(self, attributes: Mapping[str, Any], where: str = "") -> dict[str, Tensor]:
        """All attributes as ``(B,)`` tensors of equal length; names, supports and lengths are checked."""
        if not isinstance(attributes, Mapping):
            raise SchemaError(f"{where or 'what was given'} is a {type(attributes).__name__}; expected a mapping of names to values: "
                              f"{', '.join(v.name for v in self.attributes)}")
        missing = [v.name for v in self.attributes if v.name not in attributes]
        if missing:
            raise SchemaError(f"missing {', '.join(missing)}{' in ' + where if where else ''}")
        checked = {v.name: v.check(attributes[v.name], where) for v in self.attributes}
        lengths = {name: len(value) for name, value in checked.items()}
        if len(set(lengths.values())) > 1:
            raise SchemaError(f"attributes of different length{' in ' + where if where else ''}: {lengths}")
        return checked

    # ------------------------------------------------------------------------------------------------ persistence
    def to_dict(self) -> dict[str, Any]:
        return {"variables": [v.to_dict() for v in self]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Graph:
        return cls(Variable.from_dict(v) for v in state["variables"])

    def fingerprint(self, statistics: bool = True) -> str:
        """A short hash of structure and supports, and of the statistics unless told otherwise."""
        variables = sorted((_compared(v) for v in self), key=lambda v: v["name"])
        for variable in variables:
            if not statistics:
                variable.pop("statistics")
        return hashlib.sha256(json.dumps(variables, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: Graph) -> str:
        """What distinguishes two graphs, in words; empty when they are the same."""
        lines = []
        for name in sorted({v.name for v in self} | {v.name for v in other}):
            if name not in self or name not in other:
                lines.append(f"{name} is only in the {'first' if name in self else 'second'}")
                continue
            mine, theirs = _compared(self[name]), _compared(other[name])
            changed = [key for key in mine if mine[key] != theirs[key]]
            lines += [f"{name}.{key}: {mine[key]} against {theirs[key]}" for key in changed]
        return "; ".join(lines)


def _listed(variables: Any) -> tuple[Variable, ...]:
    """Raises SchemaError for what is no list of variables, naming the element that is none."""
    shown = f"variables is a {type(variables).__name__}"
    if isinstance(variables, Variable):
        raise SchemaError(f"{shown}, not a tuple of them: with one alone, a comma belongs behind it: (Variable({variables.name!r}, …),)")
    if isinstance(variables, (str, Mapping)) or not isinstance(variables, Iterable):
        raise SchemaError(f"{shown}; give a tuple of them: (Variable(…), Variable(…))")
    variables = tuple(variables)
    for position, variable in enumerate(variables):
        if not isinstance(variable, Variable):
            raise SchemaError(f"variables holds {variable!r}, a {type(variable).__name__}, at place {position}; write Variable(name, kind)")
    return variables


def _compared(variable: Variable) -> dict[str, Any]:
    """A variable as plain values in which only what matters differs between two."""
    state = variable.to_dict()
    state["statistics"] = {k: rounded(v) if isinstance(v, float) else v for k, v in state["statistics"].items()}
    return state


def encode_parents(parents: Iterable[Variable], values: Mapping[str, Tensor], batch: int, device: torch.device | None = None) -> Tensor:
    """The one place where parents are concatenated: ``(B, Σ width)``, alphabetically, whatever order they came in."""
    ordered = sorted(parents, key=lambda v: v.name)
    for variable in ordered:
        if variable.name not in values:
            raise SchemaError(f"missing the parent {variable.name!r}; got {', '.join(values) or 'nothing'}")
    columns = [variable.encode(values[variable.name]) for variable in ordered]
    return torch.cat(columns, dim=-1) if columns else torch.zeros(batch, 0, device=device)

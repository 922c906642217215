"""What is observed: variables, their kinds and supports, and the causal graph that connects them.

A :class:`Variable` owns the one normalisation and the one encoding of its values. A :class:`Graph` is a checked,
topologically sorted tuple of variables. Attribute values are always in physical units; only this file knows how they
become the inputs of a network (:meth:`Variable.encode`) or the unconstrained coordinate of a flow
(:meth:`Variable.unconstrain`).
"""

from __future__ import annotations

import hashlib
import json
import keyword
import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.columns import as_column, class_of, described_classes, lost_in_float32, told
from datasets.errors import SchemaError, did_you_mean, shown

KINDS = ("real", "positive", "interval", "binary", "categorical", "image")
CONTINUOUS = ("real", "positive", "interval")
DISCRETE = ("binary", "categorical")
_DIGITS = 9  # of statistics: a sum's last digits depend on how many threads made it, and runs are told apart by them
_EDGE = 1e-6  # how close, as a share of the range, an interval's value may come to its bounds


@dataclass(frozen=True)
class Statistics:
    """What the training split says about one variable.

    ``mean, std, minimum, maximum`` are in physical units; ``location, scale`` are mean and standard deviation of the
    unconstrained coordinate. ``counts`` are class frequencies of a discrete variable. ``explained`` is the share of the
    variance (R²) of that coordinate, or of the classes' indicators, that a linear regression on those of its causes, direct
    or not, explains which also cause the image.
    """

    mean: float = 0.0
    std: float = 1.0
    minimum: float = -math.inf
    maximum: float = math.inf
    location: float = 0.0
    scale: float = 1.0
    counts: tuple[int, ...] = ()
    explained: float = 0.0


@dataclass(frozen=True)
class Variable:
    """One observed variable and the names of its direct causes.

    Args:
        name: unique name; any Python identifier, because it names a Pyro site and a command-line value.
        kind: ``real``, ``positive`` (> ``low``, 0 unless given), ``interval`` (between ``low`` and ``high``),
            ``binary``, ``categorical`` or ``image``.
        parents: names of direct causes, in any order.
        low, high: bounds of the support in physical units.
        classes: class names in order of their index, or their number, of a categorical variable.
        shape: ``(channels, height, width)`` of an image.
        unit: physical unit, for axes and tables.
        statistics: filled by :meth:`fitted` from the training split.

    >>> age = Variable("age", "interval", low=0, high=100).fitted(torch.tensor([20.0, 40.0, 60.0]))
    >>> age.encode(torch.tensor([40.0, 60.0])).tolist()
    [[0.0], [1.0]]
    >>> age.check(120.0, "do")
    Traceback (most recent call last):
    datasets.errors.SchemaError: age=120 in do has no support: age is a number in [0, 100]

    Raises:
        SchemaError: for a contradiction between these.
    """

    name: str
    kind: str
    parents: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    classes: tuple[str, ...] | int = ()
    shape: tuple[int, int, int] | None = None
    unit: str = ""
    statistics: Statistics = field(default_factory=Statistics)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.kind not in KINDS:
            raise SchemaError(f"variable {self.name!r}: unknown kind {self.kind!r}; valid kinds are {', '.join(KINDS)}")
        if not (isinstance(self.unit, str) and self.unit == shown(self.unit)):
            raise SchemaError(f"variable {self.name!r}: the unit {told(repr(self.unit))} is no text that can be shown")
        if isinstance(self.parents, str) or not isinstance(self.parents, Iterable):
            raise SchemaError(f"variable {self.name!r}: parents must be a tuple of names, got {told(repr(self.parents))}")
        if wrong := [parent for parent in self.parents if not isinstance(parent, str)]:
            raise SchemaError(f"variable {self.name!r}: parents are given by name, got {told(repr(wrong[0]))}")
        object.__setattr__(self, "parents", tuple(sorted(self.parents)))
        if len(set(self.parents)) < len(self.parents):
            raise SchemaError(f"variable {self.name!r} lists a parent twice: {', '.join(self.parents)}")
        if self.kind == "positive" and self.low is None:
            object.__setattr__(self, "low", 0.0)
        for bound in ("low", "high"):  # 64 and 64.0 are one support; a number of NumPy's would not load from a checkpoint
            if getattr(self, bound) is not None:
                object.__setattr__(self, bound, self._bound(bound))
        if self.kind == "interval" and not (self.low is not None and self.high is not None and self.low < self.high):
            raise SchemaError(f"interval {self.name!r} needs low < high, got low={self.low}, high={self.high}")
        if self.kind == "image":
            sides = tuple(self.shape) if isinstance(self.shape, Iterable) else ()
            if len(sides) != 3 or not all(isinstance(side, Integral) and side > 0 for side in sides):
                raise SchemaError(f"image {self.name!r} needs shape=(channels, height, width), got {told(repr(self.shape))}")
            object.__setattr__(self, "shape", tuple(map(int, sides)))
        object.__setattr__(self, "classes", self._class_names())

    def _bound(self, which: str) -> float:
        try:
            number = float(getattr(self, which))
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SchemaError(f"{self.kind} {self.name!r}: {which}={told(repr(getattr(self, which)))} is no finite number")
        return number

    def _class_names(self) -> tuple[str, ...]:
        """``classes`` as a tuple of different names that can be shown."""
        given, where = self.classes, f"{self.kind} {self.name!r}"
        if isinstance(given, str):
            raise SchemaError(f"{where}: classes must be a tuple of names, or their number, got the string {told(repr(given))}")
        if isinstance(given, Integral) and not isinstance(given, bool):
            given = tuple(map(str, range(given)))
        elif not isinstance(given, Iterable) or isinstance(given, (Set, Mapping)):  # a set's order is another in each process
            raise SchemaError(f"{where}: classes must be a tuple of names, or their number, got {told(repr(given))}")
        given = tuple(given)
        if not self.discrete:
            if given:
                raise SchemaError(f"{where} has no classes: make it categorical, or leave out classes={told(repr(self.classes))}")
            return ()
        if wrong := [name for name in given if not isinstance(name, str)]:
            raise SchemaError(f"{where}: the class {told(repr(wrong[0]))} is no text; write it as {told(repr(str(wrong[0])))}")
        names = tuple(str(name).strip() for name in given) or (("0", "1") if self.kind == "binary" else ())
        if unseen := [name for name in names if not name or name != shown(name)]:
            raise SchemaError(f"{where}: the class {told(repr(unseen[0]))} is no name that can be shown; use letters, digits and signs")
        if twice := [name for k, name in enumerate(names) if name in names[:k]]:
            raise SchemaError(f"{where} has two classes of the name {told(repr(twice[0]))}")
        if self.kind == "binary" and len(names) != 2:
            raise SchemaError(f"{where} has {len(names)} classes: {told(', '.join(names))}; give two, or make it categorical")
        if len(names) < 2:
            raise SchemaError(f"{where} needs classes=K or their names, at least 2; got {told(repr(self.classes))}")
        return names

    # ------------------------------------------------------------------------------------------------ properties
    @property
    def continuous(self) -> bool:
        return self.kind in CONTINUOUS

    @property
    def discrete(self) -> bool:
        return self.kind in DISCRETE

    @property
    def cardinality(self) -> int:
        """Number of classes of a discrete variable."""
        return len(self.classes)

    @property
    def width(self) -> int:
        """Number of columns of :meth:`encode`."""
        return self.cardinality if self.discrete else 1

    @property
    def support(self) -> str:
        """The support in words, for messages and tables."""
        if self.discrete:
            return f"one of {described_classes(self.classes)}"
        if self.kind == "positive":
            return f"a number above {self.low:g}"
        if self.kind == "interval":
            return f"a number in [{self.low:g}, {self.high:g}]"
        return "a finite number"

    # ------------------------------------------------------------------------------------------------ values
    def class_index(self, word: str, where: str = "") -> int:
        """The class that a word means, wherever a person writes one: see :func:`datasets.columns.class_of`.

        Raises:
            SchemaError: for a word that means none.
        """
        if (index := class_of(word, self.classes)) is None:
            place = f" in {told(repr(where))}" if where else ""
            raise SchemaError(f"{self.name}={told(repr(word))}{place} has no support: {self.name} is {self.support}"
                              f"{did_you_mean(self.classes, word)}")
        return index

    def check(self, values: Any, where: str = "") -> Tensor:
        """Values as a tensor of this variable's dtype, shape ``(B,)``, row for row; refuses what has no support.

        Classes are given by index, or by name in text.

        Raises:
            SchemaError: for text where numbers are due, missing values, values outside the support, fractional or unknown
                classes, and numbers that float32 cannot tell apart.
        """
        place = f" in {where}" if where else ""
        tensor = as_column(values, self.name, place, self.support, lambda word: class_of(word, self.classes))
        if tensor.is_complex() or (tensor.ndim > 1 and tensor.shape[1:].numel() != 1):
            raise SchemaError(f"{self.name}{place} has shape {tuple(tensor.shape)}; expected (B,)")
        tensor = tensor.reshape(-1)
        tensor = tensor.long() if tensor.dtype == torch.bool else tensor
        if self.continuous and lost_in_float32(tensor):
            middle = float(tensor.double().median())
            raise SchemaError(f"{self.name}{place} lies about {middle:.10g}, where 32-bit numbers are too far apart to tell its values "
                              f"apart: subtract an offset, such as {middle:.3g}, or take a larger unit")
        tensor = tensor.float() if self.continuous else tensor  # what has support must still have it in float32
        bad = ~torch.isfinite(tensor) if tensor.is_floating_point() else torch.zeros_like(tensor, dtype=torch.bool)
        if self.discrete:
            bad = bad | (tensor != tensor.round()) | (tensor < 0) | (tensor >= self.cardinality)
        elif self.kind == "positive":
            bad = bad | (tensor <= self.low)
        elif self.kind == "interval":
            bad = bad | (tensor < self.low) | (tensor > self.high)
        if bad.any():
            row = int(bad.nonzero()[0])
            at = f" (row {row})" if len(tensor) > 1 else ""
            remedy = "; leave out rows without a value" if at and math.isnan(tensor[row].item()) else ""
            raise SchemaError(f"{self.name}={tensor[row].item():g}{at}{place} has no support: {self.name} is {self.support}{remedy}")
        return tensor.long() if self.discrete else tensor.float()

    def beyond_training(self, values: Tensor) -> Tensor:
        """``(B,)`` booleans: the value lies outside the range (or the classes) seen in training."""
        if self.discrete:
            seen = torch.tensor([c > 0 for c in self.statistics.counts] or [True] * self.cardinality, device=values.device)
            return ~seen[values]
        return (values < self.statistics.minimum) | (values > self.statistics.maximum)

    def fitted(self, values: Tensor) -> Variable:
        """This variable with the statistics of ``values`` (the training split, physical units, ``(N,)``)."""
        values = self.check(values, "the training split").cpu()
        if self.discrete:
            counts = torch.bincount(values, minlength=self.cardinality)
            return replace(self, statistics=Statistics(counts=tuple(counts.tolist()), minimum=0, maximum=self.cardinality - 1))
        values = values.double()
        if values.numel() < 2 or float(values.std()) == 0:
            raise SchemaError(f"{self.name} is constant in the training split; drop it from the graph")
        bare = replace(self, statistics=Statistics())
        free = bare.unconstrain(values)
        return replace(self, statistics=Statistics(
            mean=_rounded(values.mean()), std=_rounded(values.std()), minimum=float(values.min()), maximum=float(values.max()),
            location=_rounded(free.mean()), scale=_rounded(free.std())))

    def encode(self, values: Tensor) -> Tensor:
        """``(B,) → (B, width)``: z-scores of physical values, or one-hot classes; the inputs of every network."""
        if self.discrete:
            return F.one_hot(values.long(), self.cardinality).float()
        return ((values - self.statistics.mean) / self.statistics.std).unsqueeze(-1)

    def unconstrain(self, values: Tensor) -> Tensor:
        """Physical value → standardised coordinate on the whole real line; the inverse of :meth:`constrain`."""
        if self.kind == "positive":
            values = torch.log(values - self.low)
        elif self.kind == "interval":
            values = torch.logit((values - self.low) / (self.high - self.low), eps=_EDGE)
        return (values - self.statistics.location) / self.statistics.scale

    def constrain(self, free: Tensor) -> Tensor:
        """Standardised coordinate → physical value, inside the support in floating point too, however extreme it is."""
        free = free * self.statistics.scale + self.statistics.location
        if self.kind == "positive":  # exp underflows or overflows; low + tiny is low
            low = torch.tensor(self.low, dtype=free.dtype)
            above = float(torch.nextafter(low, torch.full_like(low, math.inf)))
            return (self.low + torch.exp(free)).clamp(above, torch.finfo(free.dtype).max)
        if self.kind == "interval":  # low + (high − low) may round to more than high
            return (self.low + (self.high - self.low) * torch.sigmoid(free)).clamp(self.low, self.high)
        return free

    # ------------------------------------------------------------------------------------------------ persistence
    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Variable:
        state = dict(state)
        statistics = dict(state.pop("statistics", {}))
        statistics["counts"] = tuple(statistics.get("counts", ()))
        for name in ("parents", "classes"):
            state[name] = tuple(state.get(name) or ())
        if state.get("shape") is not None:
            state["shape"] = tuple(state["shape"])
        return cls(**state, statistics=Statistics(**statistics))


def _check_name(name: object) -> None:
    """Raises SchemaError for what cannot name a Pyro site and a value of a command line."""
    if not (isinstance(name, str) and name.isidentifier()):
        raise SchemaError(f"variable name {told(repr(name))} is not an identifier: use letters, digits and '_'")
    if keyword.iskeyword(name):
        raise SchemaError(f"variable name {name!r} is a word of Python's own; add something, such as {name}_")


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
        return _rounded(1 - residual.var(0).sum() / variance) if variance > 0 else 0.0

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


def _rounded(number: float | Tensor) -> float:
    return float(f"{float(number):.{_DIGITS}g}")


def _compared(variable: Variable) -> dict[str, Any]:
    """A variable as plain values in which only what matters differs between two."""
    state = variable.to_dict()
    state["statistics"] = {k: _rounded(v) if isinstance(v, float) else v for k, v in state["statistics"].items()}
    return state


def encode_parents(parents: Iterable[Variable], values: Mapping[str, Tensor], batch: int, device: torch.device | None = None) -> Tensor:
    """The one place where parents are concatenated: ``(B, Σ width)``, alphabetically, whatever order they came in."""
    ordered = sorted(parents, key=lambda v: v.name)
    for variable in ordered:
        if variable.name not in values:
            raise SchemaError(f"missing the parent {variable.name!r}; got {', '.join(values) or 'nothing'}")
    columns = [variable.encode(values[variable.name]) for variable in ordered]
    return torch.cat(columns, dim=-1) if columns else torch.zeros(batch, 0, device=device)

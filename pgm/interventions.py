"""do(name = value): what an intervention may be, how it is checked, and how a command line spells it."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from datasets import Graph, SchemaError, Variable
from datasets.errors import UserError, did_you_mean
from mechanisms.training.noise import seeded

Action: TypeAlias = float | Tensor | Callable[[Tensor], float | Tensor]
Do: TypeAlias = Mapping[str, Action]

_SYNTAX = re.compile(r"\s*(?P<name>\w+)\s*(?P<verb>\+=|=|~)\s*(?P<values>.*?)\s*")
_HELP = "write name=value[,value…], name+=delta[,delta…] or name~marginal"


def resolve_do(graph: Graph, do: Do, observed: Mapping[str, Tensor],
               size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The intervened values of ``size`` rows, and which of them lie beyond the training data.

    Args:
        graph: says which names and which values are possible.
        do: for each intervened attribute a number, a tensor ``(size,)`` in physical units (class indices where
            discrete, or names in text; integral floats are accepted), or a function of the observed value ``(size,)`` to either. It
            is given a copy, which it may change in place.
        observed: the world that ``do`` intervenes on, ``(size,)`` each; needed where ``do`` holds a function.
        size: number of rows.

    Returns:
        ``values``, ``(size,)`` each, on the device of ``observed``, and ``beyond``, booleans ``(size,)``: the value is
        outside the range, or the class outside the classes, of the training split. That is warned of, too.

    >>> graph = Graph([Variable("age", "positive"), Variable("image", "image", ("age",), shape=(1, 8, 8))])
    >>> resolve_do(graph, {"age": lambda age: age + 1}, {"age": torch.tensor([30.0, 40.0])}, 2)[0]
    {'age': tensor([31., 41.])}

    Raises:
        SchemaError: for what is no mapping, unknown names, values without support, wrong lengths, and functions that fail.
    """
    if not isinstance(do, Mapping):
        spelled = "; parse_do(text, graph) reads a command line's spelling" if isinstance(do, str) else ""
        raise SchemaError(f"do={do!r} is a {type(do).__name__}; give a mapping of names to values, such as "
                          f"{{{graph.attributes[0].name!r}: …}}, or {{}} to change nothing{spelled}")
    values, beyond = {}, {}
    for name, action in do.items():
        variable = _attribute(graph, name)
        if callable(action):
            if name not in observed:
                raise SchemaError(f"do({name}) is a function of the observed {name}, which is not given")
            action = _called(action, name, observed[name])
        value = variable.check(action, "do").clone()  # not the caller's own tensor
        if np.ndim(action) == 0:
            value = value.expand(size).clone()
        if len(value) != size:
            raise SchemaError(f"do({name}) has {len(value)} values for {size} rows: give one number or one value a row")
        values[name] = value.to(observed[name].device) if name in observed else value
        beyond[name] = variable.beyond_training(values[name])
        if beyond[name].any():  # in words that depend on nothing but the variable: Python then says them once a place
            warnings.warn(_extrapolation(variable, values[name][beyond[name]]), stacklevel=3)
    return values, beyond


def parse_do(text: str | Iterable[str], graph: Graph, marginals: Mapping[str, Tensor] | None = None,
             generator: torch.Generator | None = None) -> list[tuple[str, dict[str, Action]]]:
    """``name=value[,value…]``, ``name+=delta[,delta…]`` and ``name~marginal`` as labelled interventions, in order.

    Args:
        text: one such string or several; ``thickness=1.5,3`` makes two interventions.
        graph: says which names and which values are possible. A class is written as its name, or as its index where no class
            has a number for a name; see :meth:`datasets.Variable.class_index`.
        marginals: training values ``{name: (N,)}`` that ``~marginal`` draws from, with replacement. Without them it
            permutes the observed values of the batch.
        generator: of these draws, which are then made afresh whenever the intervention is resolved. Without one they
            are always the same, a function of the variable's name.

    Returns:
        ``(label, do)`` pairs for :func:`resolve_do`; the label is the command line's spelling of that one value, of a class its name.

    >>> graph = Graph([Variable("age", "positive"), Variable("image", "image", ("age",), shape=(1, 8, 8))])
    >>> parse_do("age=30,40", graph)
    [('age=30', {'age': 30.0}), ('age=40', {'age': 40.0})]

    Raises:
        SchemaError: for what cannot be read, unknown names, values without support, and what is asked twice, in other words too.
    """
    interventions: list[tuple[str, dict[str, Action]]] = []
    seen: dict[tuple[str, str, float | str], str] = {}  # what is set, whatever its spelling → the label
    for part in [text] if isinstance(text, str) else text:
        match = _SYNTAX.fullmatch(part)
        if match is None:
            raise SchemaError(f"cannot read the intervention {part!r}: {_HELP}; names are {_names(graph)}")
        variable, verb = _attribute(graph, match["name"]), match["verb"]
        for word in _words(variable, match["values"]):
            value: float | str = word
            if verb == "~":
                action = _marginal(variable, word, part, (marginals or {}).get(variable.name), generator)
            elif verb == "+=":
                value = _number(variable, word, part)
                action = _shift(value)
            else:
                action = value = _value(variable, word, part)
                word = variable.classes[int(action)] if variable.discrete else word
            label = f"{variable.name}{verb}{word}"
            if (same := seen.setdefault((variable.name, verb, value), label)) is not label:
                raise SchemaError(f"--do {label} is given twice{'' if same == label else f': {same} is the same'}; leave one out")
            interventions.append((label, {variable.name: action}))
    return interventions


def _called(function: Callable[[Tensor], float | Tensor], name: str, observed: Tensor) -> float | Tensor:
    """What a user's function makes of a copy of the observed values.

    Raises:
        SchemaError: where it fails, naming the variable.
    """
    try:
        return function(observed.clone())
    except UserError:
        raise
    except Exception as error:
        raise SchemaError(f"do({name}): its function failed with {type(error).__name__}: {error}; it is called with the observed "
                          f"{name}, a tensor ({len(observed)},), and returns a number or as many values") from error


def _attribute(graph: Graph, name: str) -> Variable:
    if name not in graph or graph[name].kind == "image":
        raise SchemaError(f"cannot intervene on {name!r}; names are {_names(graph)}"
                          f"{did_you_mean([v.name for v in graph.attributes], str(name))}")
    return graph[name]


def _names(graph: Graph) -> str:
    return ", ".join(v.name for v in graph.attributes)


def _words(variable: Variable, text: str) -> list[str]:
    """What commas part; a class whose name has commas in it may stand alone."""
    return [text] if text in variable.classes else [word.strip() for word in text.split(",")]


def _value(variable: Variable, word: str, part: str) -> float:
    """A number with support, or the index of the class that a word means."""
    if variable.discrete:
        return float(variable.class_index(word, part))
    value = _number(variable, word, part)
    variable.check(value, repr(part))
    return value


def _number(variable: Variable, word: str, part: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise SchemaError(f"{word!r} in {part!r} is not a number: {variable.name} is {variable.support}") from None


def _shift(delta: float) -> Callable[[Tensor], Tensor]:
    return lambda observed: observed + delta


def _marginal(variable: Variable, word: str, part: str, training: Tensor | None,
              generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
    if word != "marginal":
        raise SchemaError(f"{word!r} in {part!r} is not known after '~': {_HELP}")
    if training is not None:
        training = variable.check(training, "the marginal")

    def draw(observed: Tensor) -> Tensor:
        # by name, so that two variables are not permuted alike
        stream = seeded(zlib.crc32(variable.name.encode())) if generator is None else generator
        if training is None:
            return observed[torch.randperm(len(observed), generator=stream, device=stream.device).to(observed.device)]
        rows = torch.randint(len(training), (len(observed),), generator=stream, device=stream.device)
        return training[rows.to(training.device)].to(observed.device)

    return draw


def _extrapolation(variable: Variable, values: Tensor) -> str:
    if variable.discrete:
        return f"do({variable.name}): class {variable.classes[int(values[0])]} was never seen in training; expect an extrapolation"
    low, high = variable.statistics.minimum, variable.statistics.maximum
    return (f"do({variable.name}) goes beyond the training range [{low:g}, {high:g}]; expect an extrapolation in the rows that the "
            "answer marks as `beyond`")

"""do(name = value): what an intervention may be, how it is checked, and how a command line spells it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from datasets import Graph, SchemaError, Variable
from datasets.errors import did_you_mean

Action: TypeAlias = float | Tensor | Callable[[Tensor], float | Tensor]
Do: TypeAlias = Mapping[str, Action]

_SYNTAX = re.compile(r"\s*(?P<name>\w+)\s*(?P<verb>\+=|=|~)\s*(?P<values>.*?)\s*")
_HELP = "write name=value[,value…], name+=delta[,delta…] or name~marginal"
_warned: set[str] = set()  # variables whose users have been told; once in a process is enough


def resolve_do(graph: Graph, do: Do, observed: Mapping[str, Tensor],
               size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The intervened values of ``size`` rows, and which of them lie beyond the training data.

    Args:
        graph: says which names and which values are possible.
        do: for each intervened attribute a number, a tensor ``(size,)`` in physical units (class indices where
            discrete, or names in text; integral floats are accepted), or a function of the observed value ``(size,)`` to either.
        observed: the world that ``do`` intervenes on, ``(size,)`` each; needed where ``do`` holds a function.
        size: number of rows.

    Returns:
        ``values``, ``(size,)`` each, on the device of ``observed``, and ``beyond``, booleans ``(size,)``: the value is
        outside the range, or the class outside the classes, of the training split. Warns once per variable and process.

    Raises:
        SchemaError: for unknown names, values without support, and wrong lengths.
    """
    values, beyond = {}, {}
    for name, action in do.items():
        variable = _attribute(graph, name)
        if callable(action):
            if name not in observed:
                raise SchemaError(f"do({name}) is a function of the observed {name}, which is not given")
            action = action(observed[name])
        value = variable.check(action, "do")
        if np.ndim(action) == 0:
            value = value.expand(size).clone()
        if len(value) != size:
            raise SchemaError(f"do({name}) has {len(value)} values for {size} rows: give one number or one value a row")
        values[name] = value.to(observed[name].device) if name in observed else value
        beyond[name] = variable.beyond_training(values[name])
        if name not in _warned and beyond[name].any():
            _warned.add(name)
            warnings.warn(_extrapolation(variable, values[name][beyond[name]], size), stacklevel=3)
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
        generator: of these draws. They are made afresh whenever the intervention is resolved.

    Returns:
        ``(label, do)`` pairs for :func:`resolve_do`; the label is the command line's spelling of that one value, of a class its name.

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


def _attribute(graph: Graph, name: str) -> Variable:
    if name not in graph or graph[name].kind == "image":
        raise SchemaError(f"cannot intervene on {name!r}; names are {_names(graph)}"
                          f"{did_you_mean([v.name for v in graph.attributes], name)}")
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
    device = generator.device if generator is not None else torch.device("cpu")

    def draw(observed: Tensor) -> Tensor:
        if training is None:
            return observed[torch.randperm(len(observed), generator=generator, device=device).to(observed.device)]
        rows = torch.randint(len(training), (len(observed),), generator=generator, device=device)
        return training[rows.to(training.device)].to(observed.device)

    return draw


def _extrapolation(variable: Variable, values: Tensor, size: int) -> str:
    if variable.discrete:
        return f"do({variable.name}): class {variable.classes[int(values[0])]} was never seen in training; expect an extrapolation"
    low, high = variable.statistics.minimum, variable.statistics.maximum
    worst = values[(values - (low + high) / 2).abs().argmax()].item()
    return (f"do({variable.name}) reaches {worst:g}, beyond the training range [{low:g}, {high:g}], "
            f"in {len(values)} of {size} rows; expect an extrapolation")

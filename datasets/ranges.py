"""Which values an option may have: said once, where the field is, and looked at in one place.

    @dataclass(frozen=True)
    class Config:
        steps: Positive[int | None] = None
        shares: Share[tuple[float, ...]] = (0.5,)

``check_ranges(Config(steps=0))`` raises ``--steps 0 must be positive``; ``--help`` tells the range beside the default. Imports no torch.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from datasets.errors import UserError, valid_are

T = TypeVar("T")
_LONG = 2**63  # no whole number of ours is as large: tensors hold 64 bits


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; neither where they are ``above`` the one, ``below`` the other; and a few ``also``.

    Attributes:
        multiple: of what a number must be a multiple.
        why: what is added where one is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()
    multiple: int = 1
    why: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN and infinity never do."""
        if not math.isfinite(value):
            return False
        inside = (self.low < value if self.above else self.low <= value) and (value < self.high if self.below else value <= self.high)
        return value in self.also or (inside and (self.multiple == 1 or value % self.multiple == 0))

    @property
    def told(self) -> str:
        """The range in few words: ``at least 1``, ``in [0, 1)``."""
        return str(self).removeprefix("lie ").replace("be ", "").replace("or lie", "or")

    def __str__(self) -> str:
        """What a number must do: ``be at least 1``, ``lie in [0, 1)``."""
        if math.isfinite(self.high):
            text = f"lie in {'(' if self.above else '['}{self.low:.10g}, {self.high:.10g}{')' if self.below else ']'}"
        elif self.low == 0:
            text = "be positive" if self.above else "not be negative"
        else:
            text = f"be at least {self.low:.10g}" if math.isfinite(self.low) else "be a number"
        text = f"{text} and even" if self.multiple == 2 else text
        return "".join(f"be {value:g}, or " for value in self.also) + text


_ANY = Range()


def within(low: float = -math.inf, high: float = math.inf, **further: Any) -> Any:
    """An annotation for numbers of a :class:`Range`, to be completed by their type: ``Share = within(0, 1)``, ``share: Share[float]``.

    Of a tuple it holds for each element; None passes where the type has it. A command's help shows it.
    """
    allowed = Range(low, high, **further)
    return Annotated[T, allowed, tyro.conf.arg(help_behavior_hint=lambda default: f"(default: {default}; {allowed.told})")]


Positive = within(0, above=True)
NotNegative = within(0)
Share = within(0, 1)
AtLeastOne = within(1)
Width = within(1, 2**16)  # of a layer; a square of such is 16 GiB
Seed = within(0, 2**63 - 2**20)  # generators take 63 bits, and seeds are counted up from the first
Seeds = within(1, 1000)  # how many
Processes = within(0, 1024)
Renderings = within(1, 1000)  # of each row or digit
Sample = within(2, why="a mean of one has no standard error")
Draws = within(2, 10_000, also=(0,), why="one draw has no spread, 0 is for none")  # all of an image's are computed at once


def check_ranges(options: Any, spelt: Callable[[str, Any], str] | None = None, error: type[UserError] = UserError) -> None:
    """Refuse a value that a field cannot have: no number, NaN, infinite, a bool for a number, out of its range, no choice of a ``Literal``.

    Options within options are looked at too.

    Args:
        options: an instance of a dataclass.
        spelt: how a field and its value are named; as a flag without it.
        error: what is raised.

    Raises:
        UserError: the message names field, value and range.
    """
    for name in _hints(type(options)):
        value = getattr(options, name)
        if is_dataclass(value) and not isinstance(value, type):
            check_ranges(value, spelt, error)
        else:
            check_field(type(options), name, value, spelt, error)


def check_field(kind: type, name: str, value: Any, spelt: Callable[[str, Any], str] | None = None,
                error: type[UserError] = UserError) -> None:
    """The same for a value that field ``name`` of the dataclass ``kind`` is to get."""
    for refused, what in _faults(value, _hints(kind)[name]):
        raise error(f"{(spelt or as_flag)(name, refused)} {what}")


def as_flag(name: str, value: Any) -> str:
    """``--learning-rate -1``."""
    return f"--{name.replace('_', '-')} {value}"


def as_setting(name: str, value: Any) -> str:
    """``penalty=-1``."""
    return f"{name}={value}"


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    """Field → annotation; a subclass that gives a field another default, and no range of its own, keeps the range."""
    hints = get_type_hints(kind, include_extras=True)
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        inherited = get_type_hints(base, include_extras=True)
        hints |= {name: hint for name, hint in inherited.items() if _ranged(hint) and not _ranged(hints[name])}
    return {f.name: hints[f.name] for f in fields(kind)}


def _ranged(hint: Any) -> bool:
    return any(isinstance(extra, Range) for extra in getattr(hint, "__metadata__", ()))


def _faults(value: Any, hint: Any, allowed: Range | None = None) -> Iterator[tuple[Any, str]]:
    """Each part of ``value`` that the annotation refuses, and what it must be."""
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        allowed = next((extra for extra in extras if isinstance(extra, Range)), allowed)
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    if value is None and type(None) in kinds:
        return
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                yield value, f"is unknown; {valid_are(map(str, get_args(kind)), str(value))}"
            return
        if get_origin(kind) is tuple and isinstance(value, Sequence) and not isinstance(value, str):
            for element in value:
                yield from _faults(element, get_args(kind)[0], allowed)
            return
    if float in kinds or int in kinds:
        yield from _number_faults(value, kinds, allowed or _ANY)
    elif bool in kinds and not _is_bool(value):
        yield value, "must be true or false"


def _number_faults(value: Any, kinds: Sequence[Any], allowed: Range) -> Iterator[tuple[Any, str]]:
    if str in kinds and isinstance(value, str) or bool in kinds and _is_bool(value):
        return
    if _is_bool(value) or not isinstance(value, Real):
        yield repr(value), f"must be a {'' if float in kinds else 'whole '}number"
    elif float not in kinds and not isinstance(value, Integral):
        yield value, "must be a whole number"
    elif isinstance(value, Integral) and not -_LONG <= value < _LONG:
        yield value, "must fit into 64 bits"
    elif not allowed.holds(value):
        finite = "" if math.isfinite(value) or math.isfinite(allowed.high) else ", and finite"
        yield value, f"must {allowed}{finite}" + (f": {allowed.why}" if allowed.why else "")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool_"

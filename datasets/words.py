"""Text of a command line as values: lists with commas between, and one value of a field's type. Imports no torch."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from datasets.errors import UserError, valid_are

T = TypeVar("T", bound=Hashable)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}
_CALLED = {int: "whole number", float: "number", bool: "true or false", Path: "path", str: "text"}


def listed(text: str, where: str, valid: Iterable[str] | None = None, error: type[UserError] = UserError) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``; an empty text is an empty list.

    Args:
        where: what the list is of, for messages: a flag.
        valid: the names that there are; any without it.

    Raises:
        UserError: for an empty name, an unknown one, or one that is there twice.
    """
    if not text.strip():
        return []
    words = [word.strip() for word in text.split(",")]
    if "" in words:
        raise error(f"{where} {text!r}: nothing stands {_place(words)}; give names with one comma between")
    if valid is not None:
        known = list(valid)
        if unknown := [word for word in words if word not in known]:
            raise error(f"{where} {text}: unknown {', '.join(map(repr, unknown))}; {valid_are(known, unknown[0])}")
    once(words, where, error)
    return words


def listed_numbers(text: str, where: str, kind: type[int] | type[float] = int, error: type[UserError] = UserError) -> list[Any]:
    """``"3,17"`` → ``[3, 17]``.

    Raises:
        UserError: for a word that is no such number, an empty one, or a number that is there twice, in other words too.
    """
    words = listed(text, where, error=error)
    try:
        numbers = [kind(word) for word in words]
    except ValueError:
        example = "3,17" if kind is int else "0.5,1"
        raise error(f"{where} {text!r} is no list of {_CALLED[kind]}s with one comma between, such as {example}") from None
    once(numbers, where, error)
    return numbers


def assignments(texts: Iterable[str], flag: str, error: type[UserError] = UserError) -> dict[str, str]:
    """``["key=value", …]`` of a flag that may be repeated → ``{key: value}``; ``-`` in a key is ``_``.

    >>> assignments(["z-dim=4", "path=a=b"], "--set")
    {'z_dim': '4', 'path': 'a=b'}

    Raises:
        UserError: for a text without a key or a sign of equality, or a key that is given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not (key and separator):
            raise error(f"{flag} {text!r} is not KEY=VALUE")
        key = key.replace("-", "_")
        if key in values:
            raise error(f"{flag} {key} is given twice, as {values[key]} and {value}; leave one out")
        values[key] = value
    return values


def once(values: Iterable[T], where: str, error: type[UserError] = UserError) -> None:
    """Raises UserError for a value that is there twice, naming it."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            raise error(f"{where} names {value} twice; leave one out")
        seen.add(value)


def convert(value: object, hint: object, where: str, error: type[UserError] = UserError) -> Any:
    """A command line's text as the type that a field declares: true, false, a number, a path, one of some names, or none.

    What is no text stays as it is; whether a number lies in its range is the matter of :func:`datasets.ranges.check_ranges`.

    Args:
        where: what is set, for messages.

    Raises:
        UserError: for a text that is none of the field's types, or a field that no text can set.
    """
    if not isinstance(value, str):
        return value
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    if type(None) in kinds and value.lower() == "none":
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise error(f"{where}: {value!r} is unknown; {valid_are(get_args(kind), value)}")
            return value
    known = [kind for kind in _CALLED if kind in kinds]
    for kind in (bool, int, float, Path, str):
        if kind in known:
            try:
                return _SWITCH[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                continue
    if not known:
        raise error(f"{where} cannot be set by text")
    raise error(f"{where}: {value!r} is no {' or '.join(_CALLED[kind] for kind in known)}")


def _place(words: list[str]) -> str:
    at = words.index("")
    return "before the first comma" if at == 0 else "after the last comma" if at == len(words) - 1 else f"between commas {at} and {at + 1}"

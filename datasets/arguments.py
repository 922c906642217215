"""What a public function is given as a number: checked in one place, so that every refusal names value, place and remedy."""

from __future__ import annotations

import math
import numbers
from typing import Any

from datasets.schema import SchemaError


def whole(value: Any, name: str, least: int = 0) -> int:
    """``value`` as an int.

    >>> whole(3, "draws")
    3
    >>> whole("3", "draws")
    Traceback (most recent call last):
    datasets.errors.SchemaError: draws='3' is a str; give a whole number of at least 0

    Raises:
        SchemaError: for anything but a whole number (2.0, "3" and True are none), or one below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise SchemaError(f"{name}={value!r} is a {type(value).__name__}; give a whole number of at least {least}")
    if value < least:
        raise SchemaError(f"{name}={value} must be at least {least}")
    return int(value)


def number(value: Any, name: str, least: float = 0.0) -> float:
    """``value`` as a float.

    >>> number(1, "temperature")
    1.0
    >>> number(float("nan"), "temperature")
    Traceback (most recent call last):
    datasets.errors.SchemaError: temperature=nan must be a finite number of at least 0

    Raises:
        SchemaError: for anything but a finite number, or one below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SchemaError(f"{name}={value!r} is a {type(value).__name__}; give a number of at least {least:g}")
    if not least <= value < math.inf:
        raise SchemaError(f"{name}={value:g} must be a finite number of at least {least:g}")
    return float(value)

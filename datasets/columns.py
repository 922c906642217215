"""Columns as people have them — pandas, NumPy of any type, lists, words — as tensors, row for row by position.

What cannot be taken is refused in one line that names the variable, the row and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.errors import SchemaError, shown

_TORCH_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # of which torch can neither compare nor index
_TOLD = 40  # characters of a value in a message
_NAMED = 8  # classes in a message
_LOSS = 1e-3  # of a standard deviation: rounding that is more than this takes something away

Reading = Callable[[str], int | None]  # the number that a word stands for; None for one that means nothing


def as_column(values: Any, name: str, place: str = "", support: str = "a number", word: Reading = lambda text: None) -> Tensor:
    """Numbers of any kind as a tensor of their shape, of a type that torch can compute with.

    Args:
        values: a number, a tensor, an array, a pandas column, a list, or words.
        name, place: of the variable, and where the values stand, for messages; ``place`` begins with a blank.
        support: what a value must be, in words.
        word: what words are taken for; without it they are refused.

    Raises:
        SchemaError: for rows of different length, dates, numbers beyond 64 bits, missing values and words that mean nothing.
    """
    if isinstance(values, Tensor):
        return as_column(values.cpu().numpy(), name, place, support, word) if values.dtype in _TORCH_UNSIGNED else values
    if hasattr(values, "to_numpy"):  # a column of a table: the rows as they stand, whatever their index says
        values = values.to_numpy()
    try:
        if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
            return as_column(torch.stack([value.reshape(()) for value in values]), name, place, support, word)
        array = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SchemaError(f"{name}{place} is no column of numbers ({told(error)}): give one value a row, {support}") from error
    if isinstance(array, np.ma.MaskedArray):
        if (missing := np.ma.getmaskarray(array).reshape(-1)).any():
            at = _at(int(missing.argmax()), array.size)
            raise SchemaError(f"{name}{at}{place} is masked: leave out rows without a value, or fill them in")
        array = np.asarray(array)
    if array.dtype.kind in "mM":
        raise SchemaError(f"{name}{place} holds dates ({array.dtype}); give numbers, such as the days since a first date")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) > torch.iinfo(torch.long).max:
            row = int(array.reshape(-1).argmax())
            raise SchemaError(f"{name}={int(array.max())}{_at(row, array.size)}{place} is beyond 64-bit integers; give it as a float")
        array = array.astype(np.int64)
    elif array.dtype.kind not in "biufc":
        array = _read(array, name, place, support, word)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def in_order(items: Any) -> Any:
    """Images or masks by position: of a column of a table its rows as they stand, whatever their index says."""
    return list(items.to_numpy()) if hasattr(items, "to_numpy") else items


def identities(values: Any, name: str, place: str) -> Tensor:
    """Which rows belong together, ``(N,)`` int64: whole numbers as they are, words numbered in their alphabetical order.

    Raises:
        SchemaError: for rows without a value, fractions, or what is no column.
    """
    held = values.to_numpy() if hasattr(values, "to_numpy") else values
    words = [] if isinstance(held, Tensor) else np.asarray(held, dtype=object).reshape(-1).tolist()
    if words and all(isinstance(word, str) for word in words):
        return torch.from_numpy(np.unique(np.array(words), return_inverse=True)[1])
    numbers = as_column(held, name, place, "a whole number or a word in each row")
    if numbers.ndim != 1 or numbers.is_complex() or bool((numbers != numbers.long()).any()):
        raise SchemaError(f"{name}{place} are {numbers.dtype} of shape {tuple(numbers.shape)}; give one whole number or word a row")
    return numbers.long()


def _read(array: np.ndarray, name: str, place: str, support: str, word: Reading) -> np.ndarray:
    """Objects and words, one by one, as int64 where all are whole, else as float64."""
    numbers: list[int | float] = []
    known: dict[str, int | None] = {}  # words are few, and rows are many
    for row, item in enumerate(array.reshape(-1).tolist()):
        item = item.decode(errors="replace") if isinstance(item, bytes) else item
        try:
            if isinstance(item, str):
                if item not in known:
                    known[item] = word(item)
                number = known[item]
            else:
                number = int(item) if isinstance(item, (bool, int)) else float(item)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or abs(number) >= 2**63 and isinstance(number, int):
            remedy = "; leave out rows without a value" if array.size > 1 and not isinstance(item, str) else ""
            raise SchemaError(f"{name}={told(repr(item))}{_at(row, array.size)}{place} is not a number: {name} is {support}{remedy}")
        numbers.append(number)
    return np.array(numbers, np.int64 if all(isinstance(number, int) for number in numbers) else np.float64).reshape(array.shape)


def _at(row: int, rows: int) -> str:
    return f" (row {row})" if rows > 1 else ""


def told(value: object) -> str:
    """A value from elsewhere in a message: short, on one line, and nothing that a terminal obeys."""
    text = shown(value)
    return text if len(text) <= _TOLD else f"{text[:_TOLD - 1]}…"


# -------------------------------------------------------------------------------------------------------- classes
def class_of(word: str, classes: tuple[str, ...]) -> int | None:
    """The index of the class that a word means; None if it means none.

    A name that exists wins. A number is an index only where no class has a number for a name: of the classes 1..5, ``5`` and
    ``5.0`` are the last one and ``0`` is none. ``true`` and ``false`` are 1 and 0 where these are the names.
    """
    word = word.strip()
    if word in classes:
        return classes.index(word)
    if classes == ("0", "1") and word.lower() in ("true", "false"):
        return int(word.lower() == "true")
    if (number := _finite(word)) is None:
        return None
    named = [_finite(name) for name in classes]
    if any(name is not None for name in named):
        return named.index(number) if named.count(number) == 1 else None
    return int(number) if number.is_integer() and 0 <= number < len(classes) else None


def _finite(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def described_classes(classes: tuple[str, ...]) -> str:
    """``the 2 classes 0..1, named no, yes``, for messages."""
    count = len(classes)
    indices = f"the {count} classes 0..{count - 1}"
    if classes == tuple(map(str, range(count))):
        return indices
    return f"{indices}, named {', '.join(map(told, classes[:_NAMED]))}{', …' if count > _NAMED else ''}"


# -------------------------------------------------------------------------------------------------------- precision
def lost_in_float32(values: Tensor) -> bool:
    """Whether float32 rounds ``(N,)`` values by more than a thousandth of their standard deviation, as it does times in seconds."""
    if values.dtype not in (torch.float64, torch.int32, torch.int64) or values.numel() < 2:
        return False
    exact = values.detach().double()
    rounded = exact.float().double()
    deviation = float(exact.std())
    return bool(torch.isfinite(rounded).all()) and float((exact - rounded).abs().max()) > _LOSS * deviation > 0

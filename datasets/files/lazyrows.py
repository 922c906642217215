"""Images and masks that are read one by one, checked when they are read: what is wrong with which row."""

from __future__ import annotations

import os
from typing import Any

import torch

from datasets.errors import UserError
from datasets.schema import SchemaError


class SoundRows:
    """Marks what gives one type and shape for every row, or says itself what is wrong: its rows need not be checked."""


class CheckedRows(SoundRows):
    """``rows[i]`` as it is, if it is of ``shape`` and ``dtype``.

    Args:
        where: whose images these are, for messages.

    Raises:
        SchemaError: when read, for a row that is of another type or shape, or cannot be read; it is named.
    """

    def __init__(self, rows: Any, shape: tuple[int, ...], where: str, dtype: torch.dtype = torch.uint8) -> None:
        self.rows, self.shape, self.where, self.dtype = rows, shape, where, dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError(index)  # by which iteration ends
        try:
            value = self.rows[index]
            found = torch.as_tensor(value)
        except UserError:
            raise
        except Exception as error:  # whatever a stranger's code raises
            raise SchemaError(f"row {index} of {self.where} cannot be read: {type(error).__name__}: {error}") from error
        check_row(found, index, self.shape, self.where, self.dtype)
        return value


def check_row(found: torch.Tensor, index: int, shape: tuple[int, ...], where: str, dtype: torch.dtype = torch.uint8) -> None:
    """Raises SchemaError for a row that is not of ``shape`` and ``dtype``."""
    if found.dtype != dtype or tuple(found.shape) != shape:
        row = f"row {index}" if index or dtype == torch.bool else "the first image"
        raise SchemaError(f"{row} of {where} is {found.dtype} of shape {tuple(found.shape)}; what is read one by one must be "
                          f"{str(dtype).removeprefix('torch.')} of shape {shape}")


def check_images(images: Any, shape: tuple[int, ...], where: str) -> None:
    """Raises SchemaError for images that are no rows, or paths instead of images."""
    if isinstance(images, (str, bytes, os.PathLike)) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise SchemaError(f"the images of {where} are {images!r:.80}; return an array (N, {', '.join(map(str, shape))}), or for files "
                          "datasets.ImageFiles(paths, shape)")
    if isinstance(images, (list, tuple)) or getattr(getattr(images, "dtype", None), "kind", "") in ("O", "U", "S", "T"):
        first = next(iter(images), None)
        if isinstance(first, (str, bytes, os.PathLike)):
            raise SchemaError(f"the images of {where} are paths, first {os.fsdecode(first)}; to have them read, return "
                              f"datasets.ImageFiles(paths, {shape})")

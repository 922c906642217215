"""The rows of one split: attributes in physical units beside images, in memory or read one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.schema import SchemaError, Variable


class LazyImages(Protocol):
    """Images that do not fit in memory: ``images[i]`` is one uint8 ``(C, H, W)`` array, read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray | Tensor: ...


@dataclass(frozen=True)
class Split:
    """One split: attributes ``{name: (N,)}`` in physical units, images uint8 ``(N, C, H, W)`` or lazy.

    Beside attributes there may be further columns ``(N, …)``, such as masks, which may be lazy too.
    """

    name: str
    images: Tensor | LazyImages
    attributes: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, Tensor)

    def without_images(self) -> Split:
        """The same rows with images of no pixels, for mechanisms that never look at them."""
        return Split(self.name, torch.zeros(len(self), 0, dtype=torch.uint8), self.attributes)

    def batch(self, index: Tensor | Sequence[int] | slice) -> dict[str, Tensor]:
        """Rows as one observation: attributes ``(B,)`` and the image under its own name, float in [0, 1].

        Args:
            index: whole numbers, from −N to N − 1, in any order; or one boolean a row; or a slice.

        Raises:
            SchemaError: for anything else, naming the first row that there is not.
        """
        rows = torch.arange(len(self))[index] if isinstance(index, slice) else self._rows(index)
        values = {name: _taken(value, rows) for name, value in self.attributes.items()}
        return {**values, "image": _taken(self.images, rows).float() / 255}

    def _rows(self, index: Any) -> Tensor:
        where = f"the {self.name} split has {len(self)} rows"
        try:
            rows = torch.as_tensor(index)
        except (TypeError, ValueError, RuntimeError):
            raise SchemaError(f"rows {index!r} are no row numbers; {where}: give a list such as [0, 3]") from None
        if rows.ndim != 1 or rows.is_complex() or rows.is_floating_point() and len(rows):
            given = index if rows.numel() < 10 else f"{rows.dtype} of shape {tuple(rows.shape)}"
            raise SchemaError(f"rows {given} are no list of whole numbers; {where}: give a list such as [0, 3]")
        if rows.dtype == torch.bool:
            if len(rows) != len(self):
                raise SchemaError(f"{len(rows)} booleans do not say which rows are meant: {where}")
            return rows.nonzero().squeeze(1)
        wrong = rows[(rows < -len(self)) | (rows >= len(self))]
        if len(wrong):
            raise SchemaError(f"{where}, so there is no row {int(wrong[0])}; take 0..{len(self) - 1}")
        return rows.long()


def _taken(values: Any, rows: Tensor) -> Tensor:
    """These rows of a tensor, or of what is read one by one."""
    if isinstance(values, Tensor):
        return values[rows]
    read = [torch.as_tensor(values[int(i)]) for i in rows]
    return torch.stack(read) if read else torch.as_tensor(values[0])[None][:0]


def fingerprint(rows: Split, index: Tensor, lazy: bool = False) -> str:
    """A hash of attributes and images of these rows.

    Args:
        lazy: whether also of images that are not in memory, each of which is then read.
    """
    contents = {name: values[index] for name, values in rows.attributes.items()}
    if rows.in_memory:
        contents["image"] = rows.images[index]
    elif lazy:
        contents["image"] = torch.stack([torch.as_tensor(rows.images[int(i)]) for i in index])
    digest = hashlib.sha256()
    for name, values in sorted(contents.items()):
        digest.update(name.encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def is_array(images: Any) -> bool:
    return isinstance(images, (np.ndarray, Tensor))


def as_uint8(images: np.ndarray | Tensor, variable: Variable, where: str) -> Tensor:
    """Images in any of the accepted layouts → uint8 ``(N, C, H, W)``, checked against the variable's shape."""
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "biuf":
            raise SchemaError(f"images of {where} are an array of {images.dtype}; expected uint8, or float in [0, 1]")
        # what torch can share: in the machine's byte order, no reversed axes, not read-only
        images = np.require(images, images.dtype.newbyteorder("="), ["C", "W"])
    tensor = torch.as_tensor(images)
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8) * 255
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim == 4 and tuple(tensor.shape[1:]) != variable.shape and tuple(tensor.permute(0, 3, 1, 2).shape[1:]) == variable.shape:
        tensor = tensor.permute(0, 3, 1, 2)
    if tuple(tensor.shape[1:]) != variable.shape:
        raise SchemaError(f"images of {where} have shape {tuple(tensor.shape)}; the schema says (N, {', '.join(map(str, variable.shape))})")
    if tensor.is_floating_point():
        if not torch.isfinite(tensor).all() or tensor.min() < 0 or tensor.max() > 1:
            raise SchemaError(f"float images of {where} must lie in [0, 1]; got {tensor.min():g}..{tensor.max():g}")
        tensor = (tensor * 255).round()
    elif tensor.dtype != torch.uint8 and ((tensor := tensor.long()).min() < 0 or tensor.max() > 255):
        raise SchemaError(f"integer images of {where} must lie in 0..255; got {tensor.min()}..{tensor.max()}")
    return tensor.to(torch.uint8).contiguous()


def with_columns(split: Split, **columns: Tensor | LazyImages) -> Split:
    """The same rows with further columns, ``(N, …)`` each.

    Raises:
        SchemaError: for a column of another length.
    """
    for name, values in columns.items():
        if len(values) != len(split):
            raise SchemaError(f"column {name!r} has {len(values)} values for {len(split)} rows")
    return Split(split.name, split.images, {**split.attributes, **columns})

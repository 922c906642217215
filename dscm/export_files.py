"""The files of an export: shards of rows, each a CSV beside tensors, arrays or PNGs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mechanisms.checkpoint import RunError, load, replacing, save

KIND = "export"
COLUMNS = ("file", "truth_file", "intervention", "source", "draw")  # of a shard's CSV, before the attributes


@dataclass(frozen=True)
class Shard:
    """Rows of one intervention: ``path`` without its ending."""

    intervention: int
    rows: range
    path: Path

    @property
    def csv(self) -> Path:
        return self.path.with_name(f"{self.path.name}.csv")

    @property
    def complete(self) -> bool:
        return self.csv.exists()


def shards(out: Path, folders: Sequence[str], count: int, size: int) -> Iterator[Shard]:
    for k, folder in enumerate(folders):
        for number, start in enumerate(range(0, count, size)):
            yield Shard(k, range(start, min(start + size, count)), out / folder / f"{number:05d}")


# -------------------------------------------------------------------------------------------------------- formats
Names = list[tuple[str, str]]  # of each image and of its true image, as in the CSV


def _write_pt(path: Path, images: Tensor, truth: Tensor | None, index: Tensor, draw: Tensor, attributes: Mapping[str, Tensor]) -> Names:
    file = path.with_name(f"{path.name}.pt")
    extra = {} if truth is None else {"truth": truth}
    save(file, {"kind": KIND, "images": images, "source": index, "draw": draw, "attributes": dict(attributes), **extra})
    return [(file.name, file.name if extra else "")] * len(images)


def _write_npz(path: Path, images: Tensor, truth: Tensor | None, index: Tensor, draw: Tensor, attributes: Mapping[str, Tensor]) -> Names:
    file = path.with_name(f"{path.name}.npz")
    arrays = {"images": images, "source": index, "draw": draw, **{f"attribute_{name}": value for name, value in attributes.items()}}
    arrays |= {} if truth is None else {"truth": truth}
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **{name: value.numpy() for name, value in arrays.items()})
    return [(file.name, "" if truth is None else file.name)] * len(images)


def _write_png(path: Path, images: Tensor, truth: Tensor | None, index: Tensor, draw: Tensor, attributes: Mapping[str, Tensor]) -> Names:
    names = []
    for k, (row, number) in enumerate(zip(index.tolist(), draw.tolist(), strict=True)):
        both = {f"{row:06d}-{number}.png": images[k]} | ({} if truth is None else {f"{row:06d}-truth.png": truth[k]})
        for name, image in both.items():
            with replacing(path / name) as temporary:
                Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(temporary, "PNG")
        names.append((*(f"{path.name}/{name}" for name in both), "")[:2])
    return names


WRITERS = {"pt": _write_pt, "npz": _write_npz, "png": _write_png}


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_shard(path: Path, form: str) -> dict[str, Tensor]:
    path = path.with_name(f"{path.name}.{form}")
    if form == "pt":
        return load(path, KIND)
    try:
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in ("images", "truth") if name in arrays}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. Remove {path.with_suffix('.csv')} and export again") from error

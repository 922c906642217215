"""The files of an export: shards of rows, each a CSV beside tensors, arrays or PNGs."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mechanisms.runs.files import RunError, load, replacing, save

KIND = "export"
# of a shard's CSV, before the attributes: with blanks, as no attribute's name has them
FILE, TRUTH_FILE, INTERVENTION, SOURCE, DRAW = "image file", "true image file", "intervention made", "source row", "draw number"
COLUMNS = (FILE, TRUTH_FILE, INTERVENTION, SOURCE, DRAW)


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


def synced(file: IO[Any]) -> None:
    """See that what was written has reached the disk, before a name says that it is there."""
    file.flush()
    os.fsync(file.fileno())


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
        synced(stream)
    return [(file.name, "" if truth is None else file.name)] * len(images)


def _write_png(path: Path, images: Tensor, truth: Tensor | None, index: Tensor, draw: Tensor, attributes: Mapping[str, Tensor]) -> Names:
    names = []
    for k, (row, number) in enumerate(zip(index.tolist(), draw.tolist(), strict=True)):
        both = {f"{row:06d}-{number}.png": images[k]} | ({} if truth is None else {f"{row:06d}-truth.png": truth[k]})
        for name, image in both.items():
            with replacing(path / name) as temporary, open(temporary, "wb") as stream:
                Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(stream, "PNG")
                synced(stream)
        names.append((*(f"{path.name}/{name}" for name in both), "")[:2])
    return names


WRITERS = {"pt": _write_pt, "npz": _write_npz, "png": _write_png}


# -------------------------------------------------------------------------------------------------------- reading
def _damaged(shard: Shard, what: object) -> RunError:
    return RunError(f"{shard.path} is damaged: {what}. Remove {shard.csv} and give the same dscm.export command again, which then "
                    "writes this shard anew")


def read_table(shard: Shard, header: Sequence[str], count: int) -> list[dict[str, str]]:
    """The lines of a shard's CSV.

    Raises:
        RunError: for another header, or another number of lines.
    """
    try:
        with open(shard.csv, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            lines, names = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(shard, error) from error
    if names != list(header):
        raise _damaged(shard, f"the CSV's header is {', '.join(names) or 'missing'}; expected {', '.join(header)}")
    if len(lines) != count or any(None in line or None in line.values() for line in lines):
        raise _damaged(shard, f"the CSV has {len(lines)} lines, or some that are cut; expected {count} of {len(header)} columns")
    return lines


def parsed(shard: Shard, lines: Sequence[Mapping[str, str]], name: str, whole: bool) -> Tensor:
    """A column ``(N,)``, int64 if ``whole``, else float32.

    Raises:
        RunError: for what is no such number.
    """
    try:
        return torch.tensor([(int if whole else float)(line[name]) for line in lines], dtype=torch.long if whole else torch.float32)
    except ValueError as error:
        raise _damaged(shard, f"column {name} of the CSV: {error}") from error


def check_files(shard: Shard, lines: Sequence[Mapping[str, str]], truth: bool) -> None:
    """Raises RunError if an image that the CSV names is not there."""
    named = [line[column] for line in lines for column in (FILE, TRUTH_FILE)[: 1 + truth]]
    if missing := [name for name in named if not (shard.path.parent / name).is_file()]:
        raise _damaged(shard, f"{len(missing)} images are missing, {missing[0]} first")


def read_shard(shard: Shard, form: str, count: int, shape: tuple[int, int, int], truth: bool) -> dict[str, Tensor]:
    """``images`` and, if they were written, ``truth``: uint8 ``(count, *shape)``.

    Raises:
        RunError: for a file that is missing, damaged, or holds something else.
    """
    path, wanted = shard.path.with_name(f"{shard.path.name}.{form}"), ("images", "truth")[: 1 + truth]
    try:
        if form == "pt":
            state = load(path, KIND)
            held = {name: state[name] for name in wanted}
        else:
            with np.load(path) as arrays:
                held = {name: torch.from_numpy(arrays[name]) for name in wanted}
    except (RunError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(shard, error) from error
    for name, images in held.items():
        if images.shape != (count, *shape) or images.dtype != torch.uint8:
            raise _damaged(shard, f"{name} of {path.name} are {images.dtype} {tuple(images.shape)}; expected uint8 {(count, *shape)}")
    return held

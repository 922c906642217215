"""The published Morpho-MNIST files: IDX images and labels, and a csv of the sampled thickness and intensity.

Row k was rendered from MNIST digit k of the same part, so with MNIST at hand every row has a true counterfactual: the
noise is abducted from the csv in closed form, and the digit is rendered again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from datasets.files.idx import DataError, has_idx, read_digits
from datasets.files.text import read_csv
from datasets.mnist.morpho import DigitProcess, Origin, ThicknessIntensity, padded
from datasets.mnist.morphology import mean_thickness, measure_intensity, one_thread
from datasets.ranges import Processes
from datasets.registry import register
from datasets.schema import SchemaError

_COLUMNS = ("thickness", "intensity")
_COMPARED, _FEWEST = 500, 20  # images whose brightness is held against the table; fewer tell nothing


@register
@dataclass(eq=False)
class OfficialMorphoMNIST(ThicknessIntensity, DigitProcess):
    """Files ``{train,t10k}-images-idx3-ubyte[.gz]``, ``…-labels-idx1-ubyte[.gz]`` and ``…-morpho.csv``.

    With both parts, the last sixth of ``train`` is for validation and ``t10k`` is the test split. A folder with
    ``t10k`` alone is cut, in order, into 70 % train, 15 % valid and 15 % test.

    Args:
        data_dir: folder of these files.
        mnist: folder of MNIST's own IDX files; with it, true counterfactuals are known.
        exact: render true counterfactuals at scale 16 instead of 8.
        workers: processes that render; 0 for one per core.

    Raises:
        DataError: for files that are missing, damaged, or of different length.
    """

    name: ClassVar[str] = "morphomnist-official"
    data_dir: Path | None = None
    mnist: Path | None = None
    exact: bool = False
    workers: Processes[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is None:
            raise DataError(f"{self.title} needs data_dir, the folder of t10k-images-idx3-ubyte.gz and t10k-morpho.csv")
        self.data_dir = Path(self.data_dir).expanduser()
        self._own: dict[tuple[str, int], float] = {}

    @property
    def true_images_under(self) -> tuple[str, ...]:
        return _COLUMNS if self.mnist is not None else ()

    @cached_property
    def _places(self) -> dict[str, tuple[str, slice]]:
        """Split → which part of the files, and which of its rows."""
        if has_idx(self.data_dir, "train"):
            cut = (n := len(self._part("train")["image"])) - n // 6
            return {"train": ("train", slice(0, cut)), "valid": ("train", slice(cut, n)), "test": ("t10k", slice(None))}
        n = len(self._part("t10k")["image"])
        cuts = [0, round(0.7 * n), round(0.85 * n), n]
        return {split: ("t10k", slice(*cuts[k:k + 2])) for k, split in enumerate(("train", "valid", "test"))}

    @cached_property
    def _parts(self) -> dict[str, dict[str, np.ndarray]]:
        return {}

    def _part(self, prefix: str) -> dict[str, np.ndarray]:
        if prefix not in self._parts:
            images, labels = read_digits(self.data_dir, prefix, strokes=True)
            path = self.data_dir / f"{prefix}-morpho.csv"
            table = read_table(path, len(images))
            check_order(path, images, table["intensity"])
            self._parts[prefix] = {"image": images, "digit": labels, **table}
        return self._parts[prefix]

    @cached_property
    def _mnist(self) -> dict[str, np.ndarray]:
        return {}

    def _base(self, prefix: str) -> np.ndarray:
        """The MNIST digits, checked to be those that the rows were made from."""
        if prefix not in self._mnist:
            images, labels = read_digits(self.mnist, prefix)
            rows = self._part(prefix)["digit"]
            if len(labels) < len(rows) or not np.array_equal(labels[:len(rows)], rows):
                raise DataError(f"the {prefix} digits in {self.mnist} are not those of {self.data_dir}: labels differ")
            self._mnist[prefix] = images
        return self._mnist[prefix]

    def load(self, split: str) -> dict[str, np.ndarray | Tensor]:
        prefix, rows = self._places[split]
        part = {name: values[rows] for name, values in self._part(prefix).items()}
        return {**part, "image": padded(part["image"])}

    def origin(self, split: str, index: np.ndarray) -> Origin:
        prefix, rows = self._places[split]
        digits = self._base(prefix)[rows][:len(self.split(split))]
        own = np.zeros(len(digits))
        for k in np.unique(index).tolist():
            # alone, because a thickness depends a little on the digits that it is measured with
            key = (split, k)
            if key not in self._own:
                with one_thread():
                    self._own[key] = float(mean_thickness(digits[k:k + 1], self.scale)[0])
            own[k] = self._own[key]
        thickness, intensity = (self.split(split).attributes[name].double().numpy() for name in _COLUMNS)
        noise = (logit((intensity - 64) / 191) - 2 * (thickness - 2.5)) / 0.5
        return Origin(digits, own, np.arange(len(digits)), noise)

    def true_counterfactual(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for generated digits; the official images differ from our renderings by about 0.5 of 255."""
        if self.mnist is None:
            raise SchemaError(f"{self.title} knows true counterfactuals only with the option mnist, "
                              "the folder of MNIST's own files")
        return super().true_counterfactual(split, index, do)


def read_table(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Columns ``thickness`` and ``intensity`` of a csv with ``rows`` lines after its header, float32.

    A table without the column ``index`` is warned of: that its rows are in the images' order cannot be seen in it.

    Raises:
        DataError: see :func:`datasets.files.text.read_csv`; for an entry that is no number, or another number or order of lines.
    """
    lines = read_csv(path, _COLUMNS)
    indexed = bool(lines) and "index" in lines[0][1]
    values = {name: _numbers(path, lines, name) for name in (*_COLUMNS, "index")[:3 if indexed else 2]}
    if len(lines) != rows:
        raise DataError(f"{path} has {len(lines)} rows, but there are {rows} images beside it")
    if not indexed:
        warnings.warn(f"{path} has no column index: that its rows are in the order of the images is taken for granted", stacklevel=2)
    elif not np.array_equal(values["index"], np.arange(rows)):
        raise DataError(f"{path}: its index is not 0..{rows - 1} in order, so rows and images cannot be matched; sort it by index")
    return {name: values[name].astype(np.float32) for name in _COLUMNS}


def _numbers(path: Path, lines: Sequence[tuple[int, Mapping[str, str]]], name: str) -> np.ndarray:
    """A column, float64 ``(N,)``."""
    values = np.empty(len(lines))
    for row, (number, line) in enumerate(lines):
        try:
            values[row] = float(line[name])
        except ValueError as error:
            raise DataError(f"{path} is not a table of numbers: line {number}, {name}={line[name]!r}") from error
    return values


def check_order(path: Path, images: np.ndarray, intensity: np.ndarray) -> None:
    """Raises DataError where images ``(N, 28, 28)`` go with the intensities of their rows ``(N,)`` no better than with others'."""
    some = np.arange(0, len(images), max(1, len(images) // _COMPARED))
    if len(some) < _FEWEST:
        return
    measured = measure_intensity(torch.from_numpy(images[some]).unsqueeze(1).float() / 255).numpy()
    own, others = (np.abs(measured - intensity[order]).mean() for order in (some, np.random.default_rng(0).permutation(some)))
    if own > others / 2:
        raise DataError(f"{path}: its rows are not in the order of the images: their intensities are off by {own:.0f} on average, those of "
                        f"rows drawn at random by {others:.0f}; restore the published order")

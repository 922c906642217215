"""MNIST digits in three splits, and data sets that paint discrete causes onto them with every row's noise kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.base import SPLITS, CausalDataset
from datasets.files.idx import DataError, Digits, load_mnist
from datasets.ranges import NotNegative, Seed
from datasets.schema import Variable

DIGIT = Variable("digit", "categorical", classes=10)


@dataclass(eq=False)
class DigitSplits(CausalDataset):
    """MNIST's digits divided into three splits that share none.

    Args:
        data_dir: folder of MNIST's IDX files; None for the 5,000 embedded digits.
        download: fetch MNIST (to ``data_dir``, or the cache).
        train_digits, valid_digits, test_digits: digits of each split, from its first; 0 for all there are.
        seed: of all noise.

    Raises:
        SchemaError: for a negative number.
    """

    data_dir: Path | None = None
    download: bool = False
    train_digits: NotNegative[int] = 0
    valid_digits: NotNegative[int] = 0
    test_digits: NotNegative[int] = 0
    seed: Seed[int] = 0

    def parts(self, source: Mapping[str, Digits]) -> dict[str, Digits]:
        """The digits of each split, from MNIST's ``train`` and ``test`` parts.

        Validation takes as many as the test part has (embedded 500, MNIST 10,000) from the end of the training part.
        """
        train, test = source["train"], source["test"]
        cut = len(train[0]) - min(len(test[0]), len(train[0]) // 2)
        return {"train": rows(train, slice(cut)), "valid": rows(train, slice(cut, None)), "test": test}

    @cached_property
    def _digits(self) -> dict[str, Digits]:
        """Split → images uint8 ``(D, 28, 28)`` and labels int64 ``(D,)``."""
        parts = self.parts(load_mnist(self.data_dir, self.download))
        if empty := [split for split, (found, _) in parts.items() if len(found) == 0]:
            raise DataError(f"{self.named_apart}: the {empty[0]} split has no digits: there are too few in {self.data_dir}")
        wanted = {split: getattr(self, f"{split}_digits") for split in SPLITS}
        for split, (found, _) in parts.items():
            if wanted[split] > len(found):
                raise DataError(f"{self.named_apart}: {split}_digits={wanted[split]}, but the source has {len(found)}")
        return {split: rows(pair, slice(wanted[split] or None)) for split, pair in parts.items()}


def rows(digits: Digits, which: slice) -> Digits:
    images, labels = digits
    return images[which], labels[which]


def random_halves(count: int) -> Tensor:
    """Two environments of equal size, drawn once, int64 ``(count,)``.

    Not every second row: MNIST's training rows alternate between its two groups of writers, whose strokes differ by an
    eighth in ink, so that the parity of a row could be read off its image.
    """
    return torch.from_numpy(np.random.default_rng(count).permutation(count)) % 2


@dataclass(eq=False)
class PaintedDigits(DigitSplits):
    """One image of each digit, painted according to discrete causes; no row's digit is shown twice.

    A subclass gives :meth:`noise`, :meth:`attributes` and :meth:`paint`: what is drawn once for each row, and what
    follows from it in any world. True counterfactuals are then exact. Options: see :class:`DigitSplits`.
    """

    def noise(self, split: str, digit: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """Exogenous noise of the rows of a split, ``{name: (N, …)}``, given their digits ``(N,)``."""
        raise NotImplementedError

    def attributes(self, digit: Tensor, noise: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The structural equations: every attribute, int64 ``(B,)``, where those of ``do`` are set."""
        raise NotImplementedError

    def paint(self, digits: Tensor, values: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        """The image from digits uint8 ``(B, 28, 28)``, attributes and noise, uint8 ``(B, C, H, W)``."""
        raise NotImplementedError

    @cached_property
    def _rows(self) -> dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Split → images, digits and noise of its rows."""
        found = {}
        for split, (images, labels) in self._digits.items():
            digit = torch.tensor(labels)
            found[split] = torch.tensor(images), digit, self.noise(split, digit, np.random.default_rng([self.seed, SPLITS.index(split)]))
        return found

    def load(self, split: str) -> dict[str, Tensor]:
        images, digit, noise = self._rows[split]
        values = self.attributes(digit, noise, {})
        return {**values, "image": self.paint(images, values, noise)}

    def true_counterfactual(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exact: digit and noise stay, attributes follow their equations, the image is painted again."""
        index, truth = self.intervened(split, index, do)
        if not do:
            return truth
        images, digit, noise = self._rows[split]
        noise = {name: value[index] for name, value in noise.items()}
        values = self.attributes(digit[index], noise, {name: truth[name] for name in do})
        return {**values, "image": self.paint(images[index], values, noise).float() / 255}

"""Morpho-MNIST from its equations: digits whose thickness causes their intensity, with true counterfactuals.

``t = 0.5 + Gamma(10, rate 5)``, ``i = 64 + 191·σ(2(t - 2.5) + 0.5·u)``, ``u ~ N(0, 1)``, the digit independent of both;
the image is a MNIST digit rendered with mean thickness t and intensity i (Pawlowski, Castro & Glocker, 2020, "Deep
structural causal models for tractable counterfactual inference", section 4). The noise of every row is kept, so
``do(t)`` and ``do(i)`` have exact answers, image included.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from datasets.base import SPLITS, CausalDataset
from datasets.cache import cached
from datasets.mnist import DataError, load_mnist
from datasets.morphology import (
    EXACT_SCALE,
    FAST_SCALE,
    Shape,
    mean_thickness,
    measure_intensity,
    measure_thickness,
    one_thread,
    shrink,
    with_intensity,
)
from datasets.registry import register
from datasets.schema import SchemaError, Variable

PROCESS_VERSION = 1  # raise it when the rendering or the noise changes: cached images are then made again
PAD = 2  # 28 → 32, which networks can halve five times
_CHUNK = 64  # base digits in one task; fixed, because results must not depend on the number of workers
_WORTH_A_POOL = 1500  # images; one to two seconds on one core

THICKNESS = Variable("thickness", "positive", unit="px")
DIGIT = Variable("digit", "categorical", classes=10)


@dataclass(frozen=True)
class Origin:
    """Where the rows of a split come from: ``base (N,)`` indexes ``digits (D, 28, 28)``, whose own mean thickness is
    ``own (D,)`` in pixels; ``noise (N,)`` is the exogenous noise of the second attribute."""

    digits: np.ndarray
    own: np.ndarray
    base: np.ndarray
    noise: np.ndarray


class DigitProcess(CausalDataset):
    """Shared by all data sets in which thickness causes one more attribute, and both with the digit cause the image.

    A subclass names that attribute (``second``) and gives :meth:`mechanism`, :meth:`draw` and :meth:`origin`.
    """

    second: ClassVar[str] = ""
    border: ClassVar[int] = PAD
    exact: bool = False
    workers: int = 0

    @staticmethod
    def mechanism(thickness: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The second attribute from thickness and standard normal noise, float64 ``(B,)``."""
        raise NotImplementedError

    @staticmethod
    def draw(shape: Shape, thickness: float, value: float) -> np.ndarray:
        """The image, uint8 ``(28, 28)``."""
        raise NotImplementedError

    def origin(self, split: str, index: np.ndarray) -> Origin:
        """Noise and base digits of a split, known at least for the rows ``index``."""
        raise NotImplementedError

    @property
    def scale(self) -> int:
        return EXACT_SCALE if self.exact else FAST_SCALE

    def true_counterfactual(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exact: noise and base digit stay, attributes follow their equations, the image is rendered again."""
        rows = self.split(split)
        index = torch.as_tensor(index).reshape(-1).long().cpu()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(rows):
            raise SchemaError(f"rows {int(index.min())}..{int(index.max())}: no such row in the {split} split of "
                              f"{self.title}, which has {len(rows)}")
        truth = rows.batch(index)
        for name, value in do.items():
            if name not in self.true_images_under:
                known = ", ".join(self.true_images_under)
                raise SchemaError(f"do({self.schema[name].name}) has no true image in {self.title}; only {known} have")
            value = self.schema[name].check(value, "do")
            if len(value) not in (1, len(index)):
                raise SchemaError(f"do({name}) has {len(value)} values for {len(index)} rows; give one, or one a row")
            truth[name] = value.cpu().expand(len(index)).clone()
        if not do or len(index) == 0:
            return truth
        origin = self.origin(split, index.numpy())
        base = origin.base[index]
        if "thickness" in do and self.second not in do:
            caused = self.mechanism(truth["thickness"].double().numpy(), origin.noise[index])
            truth[self.second] = torch.from_numpy(caused).float()
        columns = [truth[name].numpy()[None] for name in ("thickness", self.second)]
        images = self.render(origin.digits[base], *columns, own=origin.own[base])[1][0]
        return {**truth, "image": padded(images).float() / 255}

    def render(self, digits: np.ndarray, thickness: np.ndarray, value: np.ndarray,
               own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Digits ``(D, 28, 28)`` at attributes ``(R, D)``: own thickness ``(D,)``, images ``(R, D, 28, 28)``."""
        parts = [slice(start, start + _CHUNK) for start in range(0, len(digits), _CHUNK)]
        tasks = [(type(self).draw, self.scale, digits[p], thickness[:, p], value[:, p],
                  None if own is None else own[p]) for p in parts]
        workers = self.workers or os.cpu_count() or 1
        done = _run(tasks, workers if thickness.size >= _WORTH_A_POOL else 1, f"rendering {self.title}")
        return np.concatenate([d[0] for d in done]), np.concatenate([d[1] for d in done], axis=1)


def _render_chunk(task: tuple) -> tuple[np.ndarray, np.ndarray]:
    draw, scale, digits, thickness, value, own = task
    images = np.zeros((*thickness.shape, *digits.shape[1:]), np.uint8)
    with one_thread():
        if own is None:
            own = mean_thickness(digits, scale)
        for d, digit in enumerate(digits):
            shape = Shape(digit, float(own[d]), scale)
            for r in range(len(thickness)):
                images[r, d] = draw(shape, float(thickness[r, d]), float(value[r, d]))
    return own, images


def _run(tasks: Sequence[tuple], workers: int, title: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """:func:`_render_chunk` of all tasks, in order, in several processes where that is possible."""
    workers = min(workers, len(tasks))
    if workers > 1 and multiprocessing.parent_process() is None:  # a worker of somebody else's may not start its own
        # forked workers need no guarded __main__ and touch neither torch nor a GPU; elsewhere forking is not safe
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                return _watched(pool.map(_render_chunk, tasks), tasks, title)
        except (OSError, BrokenProcessPool) as error:
            warnings.warn(f"{title}: no worker processes ({error}); going on in one", stacklevel=4)
    return _watched(map(_render_chunk, tasks), tasks, title)


def _watched(results: Iterable[tuple], tasks: Sequence[tuple], title: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The results, with a progress bar once it takes more than two seconds."""
    done = []
    with tqdm(desc=title, total=sum(task[3].size for task in tasks), unit=" images", delay=2) as bar:
        for own, images in results:
            done.append((own, images))
            bar.update(len(own) * len(images))
    return done


def padded(images: np.ndarray) -> Tensor:
    """uint8 ``(B, 28, 28)`` → ``(B, 1, 32, 32)``."""
    return F.pad(torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1), (PAD, PAD, PAD, PAD))


@dataclass(eq=False)
class GeneratedDigits(DigitProcess):
    """A data set made from MNIST digits by sampling the process; splits are disjoint in the underlying digit.

    Args:
        data_dir: folder of MNIST's IDX files; None for the 5,000 embedded digits.
        download: fetch MNIST (to ``data_dir``, or the cache).
        renderings: images of each digit, with independent attributes.
        train_digits, valid_digits, test_digits: base digits of each split; 0 for all there are. Validation takes as
            many as the source's test part (embedded 500, MNIST 10,000) from the end of its training part.
        seed: of the attributes' noise.
        exact: render at scale 16, as the official images were, instead of 8 (four times the work).
        workers: processes; 0 for one per core. It never changes the result.
    """

    data_dir: Path | None = None
    download: bool = False
    renderings: int = 2
    train_digits: int = 0
    valid_digits: int = 0
    test_digits: int = 0
    seed: int = 0
    exact: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("renderings", "train_digits", "valid_digits", "test_digits", "seed", "workers"):
            lowest = 1 if name == "renderings" else 0
            if getattr(self, name) < lowest:
                raise SchemaError(f"{self.title}: {name}={getattr(self, name)} must be at least {lowest}")
        self._made: dict[str, dict[str, np.ndarray]] = {}

    @cached_property
    def _digits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        source = load_mnist(self.data_dir, self.download)
        (images, labels), test = source["train"], source["test"]
        spare = min(len(test[0]), len(images) // 2)
        parts = {"train": (images[:-spare], labels[:-spare]), "valid": (images[-spare:], labels[-spare:]), "test": test}
        for split, (found, _) in parts.items():
            if (wanted := self._wanted(split)) > len(found):
                raise DataError(f"{self.title}: {split}_digits={wanted}, but the source has {len(found)}")
        return {split: tuple(a[:self._wanted(split) or len(a)] for a in pair) for split, pair in parts.items()}

    def _wanted(self, split: str) -> int:
        return getattr(self, f"{split}_digits")

    def _arrays(self, split: str) -> dict[str, np.ndarray]:
        """Everything about a split: images, attributes, noise; rendering r of digit d is row ``r·D + d``."""
        if split not in self._made:
            digits, _ = self._digits[split]
            parameters = {"process": self.title, "version": PROCESS_VERSION, "split": split, "seed": self.seed,
                          "renderings": self.renderings, "scale": self.scale,
                          "digits": hashlib.sha256(digits.tobytes()).hexdigest()}
            self._made[split] = cached(self.title, parameters, lambda: self._generate(split, digits))
        return self._made[split]

    def _generate(self, split: str, digits: np.ndarray) -> dict[str, np.ndarray]:
        random = np.random.default_rng([self.seed, SPLITS.index(split)])
        size = (self.renderings, len(digits))
        # rounded to what a split stores, so that the same thickness gives the same effect again, bit for bit
        thickness = (0.5 + random.gamma(10, 1 / 5, size)).astype(np.float32)
        noise = random.standard_normal(size)
        value = self.mechanism(thickness.astype(np.float64), noise).astype(np.float32)
        own, images = self.render(digits, thickness, value)
        return {"image": images.reshape(-1, 28, 28), "thickness": thickness.ravel(), self.second: value.ravel(),
                "noise": noise.ravel(), "own": own}

    def load(self, split: str) -> dict[str, np.ndarray | Tensor]:
        arrays = self._arrays(split)
        labels = np.tile(self._digits[split][1], self.renderings)
        attributes = {name: arrays[name] for name in ("thickness", self.second)}
        return {**attributes, "digit": labels, "image": padded(arrays["image"])}

    def subjects(self, split: str) -> Tensor:
        return torch.arange(len(self._digits[split][0])).repeat(self.renderings)

    def origin(self, split: str, index: np.ndarray) -> Origin:
        arrays, digits = self._arrays(split), self._digits[split][0]
        return Origin(digits, arrays["own"], np.tile(np.arange(len(digits)), self.renderings), arrays["noise"])


class ThicknessIntensity:
    """The graph thickness → intensity; thickness, intensity, digit → image, and its equations."""

    second: ClassVar[str] = "intensity"
    variables: ClassVar[tuple[Variable, ...]] = (
        THICKNESS, Variable("intensity", "interval", ("thickness",), low=64, high=255), DIGIT,
        Variable("image", "image", ("thickness", "intensity", "digit"), shape=(1, 32, 32)))

    @staticmethod
    def mechanism(thickness: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return 64 + 191 * expit(2 * (thickness - 2.5) + 0.5 * noise)

    @staticmethod
    def draw(shape: Shape, thickness: float, value: float) -> np.ndarray:
        return with_intensity(shrink(shape.at(thickness), shape.scale), value)

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """``thickness`` in pixels and ``intensity`` in 0..255, ``(B,)`` each; 0 for a black image."""
        return {"thickness": measure_thickness(images), "intensity": measure_intensity(images)}


@register
@dataclass(eq=False)
class MorphoMNIST(ThicknessIntensity, GeneratedDigits):
    """Thickness → intensity, both and the digit → image. Options: see :class:`GeneratedDigits`."""

    name: ClassVar[str] = "morphomnist"
    true_images_under: ClassVar[tuple[str, ...]] = ("thickness", "intensity")

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
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from datasets.base import SPLITS, CausalDataset
from datasets.files.cache import cached
from datasets.memory import check_memory
from datasets.mnist.digits import DIGIT, DigitSplits
from datasets.mnist.morphology import (
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
from datasets.ranges import Processes, Renderings
from datasets.registry import register
from datasets.schema import SchemaError, Variable

PROCESS_VERSION = 1  # raise it when the rendering or the noise changes: cached images are then made again
_BYTES = 28 * 28 + 32 * 32 + 5 * 8  # of an image as it is made and as it is shown, and of what is known about it
PAD = 2  # 28 → 32, which networks can halve five times
_CHUNK = 64  # base digits in one task; fixed, because results must not depend on the number of workers
_WORTH_A_POOL = 1500  # images; one to two seconds on one core

THICKNESS = Variable("thickness", "positive", unit="px")


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

    def consequences(self, split: str, index: np.ndarray, values: Mapping[str, Tensor], do: Collection[str],
                     origin: Origin) -> dict[str, np.ndarray]:
        """What follows from ``do`` for thickness and the second attribute of rows ``index``, ``{name: (B,)}``.

        ``values`` are as observed, but for those of ``do``.
        """
        if "thickness" not in do or self.second in do:
            return {}
        return {self.second: self.mechanism(values["thickness"].double().numpy(), origin.noise[index])}

    @property
    def scale(self) -> int:
        return EXACT_SCALE if self.exact else FAST_SCALE

    def true_counterfactual(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exact: noise and base digit stay, attributes follow their equations, the image is rendered again."""
        index, truth = self.intervened(split, index, do)
        if not do or len(index) == 0:
            return truth
        chosen = index.numpy()  # numpy takes a tensor of one element for a number
        origin = self.origin(split, chosen)
        base = origin.base[chosen]
        for name, values in self.consequences(split, chosen, truth, do, origin).items():
            truth[name] = torch.from_numpy(values).float()
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
class GeneratedDigits(DigitSplits, DigitProcess):
    """A data set made from MNIST digits by sampling the process; splits are disjoint in the underlying digit.

    Args:
        renderings: images of each digit, with independent attributes.
        exact: render at scale 16, as the official images were, instead of 8 (four times the work).
        workers: processes; 0 for one per core. It never changes the result.

    The other options are those of :class:`DigitSplits`.
    """

    renderings: Renderings[int] = 2
    exact: bool = False
    workers: Processes[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made: dict[str, dict[str, np.ndarray]] = {}

    def settings(self) -> dict[str, object]:
        """Further options that the attributes depend on, for the key of the cache."""
        return {}

    def sample(self, split: str, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Thickness, the second attribute and ``noise``, each ``(renderings, D)``; anything else that is to be kept."""
        size = (self.renderings, len(self._digits[split][0]))
        # rounded to what a split stores, so that the same thickness gives the same effect again, bit for bit
        thickness = (0.5 + random.gamma(10, 1 / 5, size)).astype(np.float32)
        noise = random.standard_normal(size)
        value = self.mechanism(thickness.astype(np.float64), noise).astype(np.float32)
        return {"thickness": thickness, self.second: value, "noise": noise}

    def _arrays(self, split: str) -> dict[str, np.ndarray]:
        """Everything about a split: images, attributes, noise; rendering r of digit d is row ``r·D + d``."""
        if split not in self._made:
            digits, _ = self._digits[split]
            parameters = {"process": self.title, "version": PROCESS_VERSION, "split": split, "seed": self.seed,
                          "renderings": self.renderings, "scale": self.scale,
                          "digits": hashlib.sha256(digits.tobytes()).hexdigest(), **self.settings()}
            self._made[split] = cached(self.title, parameters, lambda: self._generate(split, digits))
        return self._made[split]

    def _generate(self, split: str, digits: np.ndarray) -> dict[str, np.ndarray]:
        each = self.renderings * len(digits)
        check_memory(each * _BYTES, f"{self.title}: renderings={self.renderings} of {len(digits)} digits, {each:,} images,",
                     "Take fewer renderings, or fewer digits", SchemaError)
        made = self.sample(split, np.random.default_rng([self.seed, SPLITS.index(split)]))
        own, images = self.render(digits, made["thickness"], made[self.second])
        return {"image": images.reshape(-1, 28, 28), **{name: values.ravel() for name, values in made.items()}, "own": own}

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

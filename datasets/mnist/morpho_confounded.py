"""Confounded Morpho-MNIST: the thickness of a digit, or its intensity, is tied to its class by mere circumstance.

``label = [digit ≥ 5]``. With probability s (different in two environments) the tied attribute is drawn from the upper half
of its law for class 1 and from the lower half for class 0; else the other way round. So with U ~ U(0, 1), F the law
``0.5 + Gamma(10, rate 5)``, h the half, u ~ N(0, 1):

- thickness tied: ``t = F⁻¹((h + U)/2)``, ``i = 64 + 191·σ(2(t − 2.5) + 0.5·u)``, the equation of :mod:`datasets.mnist.morpho`;
- intensity tied: ``t ~ F``, ``i = 64 + 191·σ(2.15(τ − 2.5))`` with ``τ = F⁻¹((h + U)/2)``.

Where classes are balanced, whatever s is, thickness keeps the law that it has in Morpho-MNIST; so does intensity where
thickness is tied, and where intensity is, its logit keeps mean and variance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit, gammaincinv
from torch import Tensor

from datasets.base import Shift
from datasets.mnist.digits import DIGIT, random_halves
from datasets.mnist.morpho import THICKNESS, GeneratedDigits, Origin, ThicknessIntensity
from datasets.ranges import Share, within
from datasets.registry import register
from datasets.schema import SchemaError, Variable

SLOPE = 2.15  # var(2t + 0.5u) = 4·0.4 + 0.25 = 1.85 = var(2.15·τ)
TIES = ("thickness", "intensity")
_LABEL = Variable("label", "binary", ("digit",), classes=("0-4", "5-9"))

Strength = within(0.5, 1, why="0.5 is unconfounded")


@register
@dataclass(eq=False)
class MorphoMNISTConfounded(ThicknessIntensity, GeneratedDigits):
    """digit → label → thickness → intensity, or digit → label → intensity; thickness, intensity, digit → image.

    Without confounding, nothing follows from the label.

    Args:
        tied: ``thickness`` or ``intensity``. What is tied and what it causes in the image is spurious.
        strength: probability s that the half goes with the class, on average over the two environments; 0.5 is
            unconfounded, 1 leaves no exception.
        gap: s − ½ is (strength − ½)·(1 + gap) in the first environment and (strength − ½)·(1 − gap) in the second.

    The other options are those of :class:`datasets.mnist.morpho.GeneratedDigits`.
    """

    name: ClassVar[str] = "morphomnist-confounded"
    label: ClassVar[str] = "label"
    true_images_under: ClassVar[tuple[str, ...]] = ("label", "thickness", "intensity")

    tied: str = "thickness"
    strength: Strength[float] = 0.9
    gap: Share[float] = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tied not in TIES:
            raise SchemaError(f"{self.title}: tied={self.tied!r} is not among {', '.join(TIES)}")
        if max(self.strengths) > 1:
            raise SchemaError(f"{self.title}: gap={self.gap} must lie in [0, 1] and leave 0.5 + (strength − 0.5)·(1 + gap) at most 1, "
                              f"with strength={self.strength}")
        _, intensity, _, image = ThicknessIntensity.variables
        causes = ("label",) if self.strength > 0.5 else ()
        if self.tied == "thickness":
            self.spurious, attributes = TIES, (replace(THICKNESS, parents=causes), intensity)
        else:
            self.spurious, attributes = ("intensity",), (THICKNESS, replace(intensity, parents=causes))
        self.variables = (DIGIT, _LABEL, *attributes, image)

    @property
    def strengths(self) -> tuple[float, float]:
        """s of each environment."""
        excess = self.strength - 0.5
        return 0.5 + excess * (1 + self.gap), 0.5 + excess * (1 - self.gap)

    def settings(self) -> dict[str, object]:
        return {"tied": self.tied, "strength": self.strength, "gap": self.gap, "environments": "random halves"}

    # ------------------------------------------------------------------------------------------------ the process
    def _labels(self, split: str) -> np.ndarray:
        """The class of each row, ``(N,)``."""
        return np.tile(self._digits[split][1] >= 5, self.renderings).astype(np.int64)

    def sample(self, split: str, random: np.random.Generator) -> dict[str, np.ndarray]:
        size = (self.renderings, len(self._digits[split][0]))
        strength = np.array(self.strengths)[random_halves(size[0] * size[1]).numpy()].reshape(size)
        noise = {"noise": random.standard_normal(size), "place": random.random(size), "agrees": random.random(size) < strength,
                 "free": (0.5 + random.gamma(10, 1 / 5, size)).astype(np.float32)}
        return {**self._equations(self._labels(split).reshape(size), noise, {}), **noise}

    def _equations(self, label: np.ndarray, noise: Mapping[str, np.ndarray], do: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Thickness and intensity, float32, where those of ``do`` are set."""
        tie = quantile((np.where(noise["agrees"], label, 1 - label) + noise["place"]) / 2)
        thickness = do.get("thickness", tie if self.tied == "thickness" else noise["free"])
        if self.tied == "thickness":
            intensity = self.mechanism(thickness.astype(np.float64), noise["noise"])
        else:
            intensity = 64 + 191 * expit(SLOPE * (tie.astype(np.float64) - 2.5))
        return {"thickness": thickness, "intensity": do.get("intensity", intensity.astype(np.float32))}

    def load(self, split: str) -> dict[str, np.ndarray | Tensor]:
        return {**super().load(split), "label": self._labels(split)}

    def consequences(self, split: str, index: np.ndarray, values: Mapping[str, Tensor], do: Collection[str],
                     origin: Origin) -> dict[str, np.ndarray]:
        arrays = self._arrays(split)
        noise = {name: arrays[name][index] for name in ("noise", "place", "agrees", "free")}
        return self._equations(values["label"].numpy(), noise, {name: values[name].numpy() for name in TIES if name in do})

    def environments(self, split: str) -> Tensor:
        return random_halves(self.renderings * len(self._digits[split][0]))

    def shifts(self) -> Mapping[str, Shift]:
        """The tied attribute drawn anew: ``independent`` of the class (s = ½), and ``reversed`` (s = 1 − strength)."""
        return {"independent": self._shift(0.5), "reversed": self._shift(1 - self.strength)}

    def _shift(self, strength: float) -> Shift:
        def draw(attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            label = attributes["label"].numpy()
            agrees, place = torch.rand(2, len(label), generator=generator, dtype=torch.float64).numpy()
            noise = {"agrees": agrees < strength, "place": place, "free": np.zeros(len(label), np.float32),
                     "noise": torch.randn(len(label), generator=generator, dtype=torch.float64).numpy()}
            return {self.tied: torch.from_numpy(self._equations(label, noise, {})[self.tied])}

        return draw


def quantile(share: np.ndarray) -> np.ndarray:
    """F⁻¹ of the law of thickness, ``0.5 + Gamma(10, rate 5)``, float32."""
    return (0.5 + gammaincinv(10, share) / 5).astype(np.float32)

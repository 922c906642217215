"""What a deep structural causal model answers: the noise that it infers, and counterfactuals made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from datasets.schema import SchemaError
from mechanisms.image.base import ImageNoise


@dataclass(frozen=True)
class Exogenous:
    """The noise of one batch, of each attribute and of the image: ``(B, …)``, or K draws of it, ``(K·B, …)``, draw by draw."""

    attributes: dict[str, Tensor]
    image: ImageNoise
    draws: int | None = None


@dataclass(frozen=True)
class Counterfactual(Mapping[str, Tensor]):
    """What would have been: a mapping from names to values, ``image`` among them.

    Attributes:
        attributes: ``{name: (B,)}`` in physical units; of several draws the mean, or the class that most of them have.
        image: ``(B, C, H, W)`` in [0, 1]; the mean over draws if there are several.
        beyond: ``{intervened name: (B,)}`` booleans: the value lies beyond the training data.
        draws: ``(K, B, C, H, W)`` if ``draws=K`` was asked for; image k shows the attributes of draw k.
        attribute_draws: ``{name: (K, B)}`` likewise; :class:`dscm.metrics.coverage.Ensemble` takes either.
    """

    attributes: dict[str, Tensor]
    image: Tensor
    beyond: dict[str, Tensor]
    draws: Tensor | None = None
    attribute_draws: dict[str, Tensor] | None = None

    @property
    def spread(self) -> Tensor:
        """Pixel-wise standard deviation over the draws, ``(B, C, H, W)``."""
        return self._several(self.draws).std(0)

    @property
    def attribute_spread(self) -> dict[str, Tensor]:
        """``{name: (B,)}``: the standard deviation over the draws, or the share of them that have another class than most."""
        draws = {} if self.attribute_draws is None else self.attribute_draws
        return {name: self._several(draws.get(name)).std(0) if value.is_floating_point() else
                (self._several(draws.get(name)) != value).float().mean(0) for name, value in self.attributes.items()}

    @staticmethod
    def _several(draws: Tensor | None) -> Tensor:
        if draws is None or len(draws) < 2:
            raise SchemaError("a spread needs at least two draws: ask for counterfactual(…, draws=K)")
        return draws

    def __getitem__(self, name: str) -> Tensor:
        return self.image if name == "image" else self.attributes[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self.attributes, "image")

    def __len__(self) -> int:
        return len(self.attributes) + 1

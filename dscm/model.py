"""Attributes and image merged into one deep structural causal model: abduct, act, predict.

Pawlowski, Castro & Glocker 2020, *Deep structural causal models for tractable counterfactual inference*; the three
steps are Pearl's (2009, theorem 7.1.7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datasets.schema import Graph, SchemaError
from mechanisms.bookkeeping import WEIGHTS
from mechanisms.checkpoint import RunError, load
from mechanisms.hvae import HVAE, ImageNoise
from mechanisms.images import FOLDER as IMAGE_FOLDER
from mechanisms.images import load_image_mechanism
from mechanisms.noise import drawing
from mechanisms.runs import recorded
from pgm.interventions import Do, resolve_do
from pgm.scm import AttributeConfig, AttributeSCM
from pgm.train import FOLDER as ATTRIBUTES_FOLDER

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Exogenous:
    """The noise of one batch: of each attribute, and of the image."""

    attributes: dict[str, Tensor]
    image: ImageNoise


@dataclass(frozen=True)
class Counterfactual(Mapping[str, Tensor]):
    """What would have been: a mapping from names to values, ``image`` among them.

    Attributes:
        attributes: ``{name: (B,)}`` in physical units.
        image: ``(B, C, H, W)`` in [0, 1]; the mean over draws if there are several.
        draws: ``(K, B, C, H, W)`` if ``draws=K`` was asked for.
        beyond: ``{intervened name: (B,)}`` booleans: the value lies beyond the training data.
    """

    attributes: dict[str, Tensor]
    image: Tensor
    beyond: dict[str, Tensor]
    draws: Tensor | None = None

    @property
    def spread(self) -> Tensor:
        """Pixel-wise standard deviation over the draws, ``(B, C, H, W)``."""
        if self.draws is None or len(self.draws) < 2:
            raise SchemaError("a spread needs at least two draws: ask for counterfactual(…, draws=K)")
        return self.draws.std(0)

    def __getitem__(self, name: str) -> Tensor:
        return self.image if name == "image" else self.attributes[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self.attributes, "image")

    def __len__(self) -> int:
        return len(self.attributes) + 1


class DSCM:
    """One deep structural causal model, from a Pyro program of the attributes and an image mechanism.

    Observations are mappings ``{name: (B,)}`` with ``image``, float in [0, 1], ``(B, C, H, W)``. Results live on the
    model's device.

    Raises:
        RunError: for mechanisms that do not fit together.
    """

    def __init__(self, attributes: AttributeSCM, image: HVAE) -> None:
        if difference := attributes.graph.difference(image.graph):
            raise RunError("the mechanisms were trained on different graphs or training splits "
                           f"(attributes against image): {difference}. Train both on one data set, into one run folder")
        self.attributes, self.image = attributes.eval(), image.eval()

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> DSCM:
        """Merge the mechanisms of a run folder.

        Raises:
            RunError: for a missing folder or mechanism, a damaged file, or mechanisms of different graphs.
        """
        run = Path(run)
        recorded(run)
        for folder, command in ((ATTRIBUTES_FOLDER, "pgm.train"), (IMAGE_FOLDER, "mechanisms.train")):
            if not (run / folder / WEIGHTS).exists():
                raise RunError(f"{run} has no {folder} mechanism yet; train it first: python -m {command} --run {run}")
        state = load(run / ATTRIBUTES_FOLDER / WEIGHTS, "attributes")
        config = state["config"]
        attributes = AttributeSCM(Graph.from_dict(state["graph"]), AttributeConfig(config["bins"], tuple(config["hidden"])))
        attributes.load_state_dict(state["weights"])
        return cls(attributes, load_image_mechanism(run / IMAGE_FOLDER / WEIGHTS)).to(device)

    def to(self, device: str | torch.device) -> DSCM:
        self.attributes.to(device)
        self.image.to(device)
        return self

    @property
    def graph(self) -> Graph:
        return self.image.graph

    @property
    def device(self) -> torch.device:
        return self.attributes.device

    # ------------------------------------------------------------------------------------------------ the three steps
    def abduct(self, observed: Values, generator: torch.Generator | None = None, sample: bool = False) -> Exogenous:
        """u ~ p(u | observation).

        Args:
            generator: of discrete attributes' noise, and of the latents if they are sampled.
            sample: draw the latents from q(z | x, pa); otherwise their mean is taken, which errs less on average.
        """
        observed = self._checked(observed)
        draw = drawing(generator, self.device) if sample else None
        return Exogenous(self.attributes.abduct(observed, generator), self.image.abduct(observed["image"], observed, draw))

    def predict(self, noise: Exogenous, do: Do | None = None, temperature: float = 1.0) -> dict[str, Tensor]:
        """The world that ``noise`` makes under ``do``: attributes ``(B,)`` and ``image`` ``(B, C, H, W)``."""
        attributes = self.attributes.predict(noise.attributes, do)
        return {**attributes, "image": self.image.predict(noise.image, attributes, temperature)}

    def counterfactual(self, observed: Values, do: Do, draws: int | None = None, temperature: float = 1.0,
                       generator: torch.Generator | None = None, batch_size: int = 256) -> Counterfactual:
        """What ``observed`` would have been under ``do``.

        Laws: ``do = {}`` is the identity; only descendants of intervened variables change, all else is bit-identical.

        Args:
            do: for each intervened attribute a number, a tensor ``(B,)``, or a function of the present value.
            draws: number of posterior draws of the image's latents; without it, one answer at their mean.
            temperature: of the pixel residual; 1 keeps every detail of the image, 0 shows what the latents explain.
            batch_size: images that are computed at once.

        Raises:
            SchemaError: for unknown variables, values without support, wrong lengths or shapes.
        """
        observed = self._checked(observed)
        if draws is not None and draws < 1:
            raise SchemaError(f"draws={draws} must be at least 1")
        rows = len(observed["image"])
        values, beyond = resolve_do(self.graph, do, observed, rows)
        attributes = self.attributes.counterfactual(observed, values, generator)
        changed = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for parent in self.graph.image.parents:
            changed |= attributes[parent] != observed[parent]
        images = observed["image"].repeat(draws or 1, 1, 1, 1, 1)
        if changed.any():
            for chunk in changed.nonzero().squeeze(1).split(max(1, batch_size // (draws or 1))):
                images[:, chunk] = self._images(observed, attributes, chunk, draws, temperature, generator)
        mean = observed["image"].clone()
        mean[changed] = images[:, changed].mean(0)  # elsewhere all draws are the observation, which a mean would round
        return Counterfactual(attributes, mean, beyond, images if draws else None)

    def _images(self, observed: Values, attributes: Values, chunk: Tensor, draws: int | None, temperature: float,
                generator: torch.Generator | None) -> Tensor:
        """Images of the rows ``chunk``, ``(K, b, C, H, W)``, all draws in one batch."""
        count, names = draws or 1, self.graph.image.parents
        before = {name: observed[name][chunk].repeat(count) for name in names}
        after = {name: attributes[name][chunk].repeat(count) for name in names}
        image = observed["image"][chunk]
        noise = self.image.abduct(image.repeat(count, 1, 1, 1), before, drawing(generator, self.device) if draws else None)
        return self.image.predict(noise, after, temperature).view(count, *image.shape)

    # ------------------------------------------------------------------------------------------------ other questions
    def sample(self, size: int, do: Do | None = None, generator: torch.Generator | None = None,
               temperature: float = 1.0) -> dict[str, Tensor]:
        """New worlds, ``{name: (size,)}`` and ``image``, under ``do`` if given."""
        attributes = self.attributes.sample(size, do, generator)
        noise = self.image.draw_noise(size, drawing(generator, self.device))
        return {**attributes, "image": self.image.predict(noise, attributes, temperature)}

    @torch.no_grad()
    def log_prob(self, observed: Values, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """log p of each variable given its parents in nats, ``(B,)``; of the image a lower bound, one draw of z."""
        observed = self._checked(observed)
        bound = -self.image.free_energy(observed["image"], observed, drawing(generator, self.device))
        return {**self.attributes.log_prob(observed), "image": bound}

    def _checked(self, observed: Values) -> dict[str, Tensor]:
        """The observation on this device, its attributes in the schema's types, its image of the schema's shape."""
        attributes = self.graph.check(observed, "the observation")
        if "image" not in observed:
            raise SchemaError("the observation has no 'image'")
        image = torch.as_tensor(observed["image"])
        if tuple(image.shape[1:]) != self.graph.image.shape or not image.is_floating_point():
            raise SchemaError(f"image is {image.dtype} of shape {tuple(image.shape)}; expected float (B, "
                              f"{', '.join(map(str, self.graph.image.shape))}) in [0, 1]")
        for name, value in attributes.items():
            if len(value) != len(image):
                raise SchemaError(f"the observation has {len(image)} images but {len(value)} values of {name!r}")
        if len(image) and not (image.min() >= 0 and image.max() <= 1):
            raise SchemaError(f"image has values {image.min():g}..{image.max():g}; expected [0, 1]")
        return {**{n: v.to(self.device) for n, v in attributes.items()}, "image": image.to(self.device, torch.float32)}

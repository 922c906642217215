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
from dscm.jitter import Calibration, mechanism_hash
from mechanisms.image.latent import Draw, ImageMechanism, ImageNoise
from mechanisms.image.registry import FOLDER as IMAGE_FOLDER
from mechanisms.image.registry import load_image_mechanism
from mechanisms.runs.files import RunError, check_finite, load, rebuilt
from mechanisms.runs.folder import recorded
from mechanisms.training.noise import drawing
from mechanisms.training.state import WEIGHTS
from pgm.interventions import Do, resolve_do
from pgm.scm import AttributeConfig, AttributeSCM
from pgm.train import FOLDER as ATTRIBUTES_FOLDER

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Exogenous:
    """The noise of one batch: of each attribute, ``(B, …)``, and of the image, ``(B, …)`` or K draws, ``(K·B, …)``, of it."""

    attributes: dict[str, Tensor]
    image: ImageNoise
    draws: int | None = None


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

    Args:
        calibration: how far draws vary beyond the latents' own uncertainty, see :mod:`dscm.jitter`.

    Raises:
        RunError: for mechanisms that do not fit together.
    """

    def __init__(self, attributes: AttributeSCM, image: ImageMechanism, calibration: Calibration | None = None) -> None:
        if difference := attributes.graph.difference(image.graph):
            raise RunError("the mechanisms were trained on different graphs or training splits "
                           f"(attributes against image): {difference}. Train both on one data set, into one run folder")
        self.attributes, self.image, self.calibration = attributes.eval(), image.eval(), calibration

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
        path = run / ATTRIBUTES_FOLDER / WEIGHTS
        attributes = rebuilt(path, lambda: AttributeSCM(Graph.from_dict(state["graph"]), AttributeConfig(
            state["config"]["bins"], tuple(state["config"]["hidden"]))), state.get("weights"))
        check_finite(attributes, path, "Train it anew with a smaller --learning-rate")
        image = load_image_mechanism(run / IMAGE_FOLDER / WEIGHTS)
        return cls(attributes, image, Calibration.load(run, mechanism_hash(run / IMAGE_FOLDER))).to(device)

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
    @torch.no_grad()
    def abduct(self, observed: Values, generator: torch.Generator | None = None, draws: int | None = None,
               batch_size: int = 256) -> Exogenous:
        """u ~ p(u | observation): the one pass through the encoder that any number of interventions can share.

        Args:
            generator: of discrete attributes' noise, and of the latents if they are drawn.
            draws: number of posterior draws of the image's latents; without it their mean is taken, which errs less.
            batch_size: images that are computed at once.
        """
        observed = self._checked(observed)
        draw = drawing(generator, self.device) if draws else None
        attributes = self.attributes.abduct(observed, generator)
        rows, count = torch.arange(len(observed["image"]), device=self.device), draws or 1
        chunks = [self._abduct_images(observed, chunk, draw, count) for chunk in rows.split(max(1, batch_size // count))]
        image = chunks[0] if len(chunks) == 1 else ImageNoise.cat(chunks)
        if count > 1 and len(chunks) > 1:  # chunk by chunk, each draw by draw → draw by draw over all rows
            order = torch.cat([chunk.repeat(count) + len(rows) * torch.arange(count, device=self.device).repeat_interleave(len(chunk))
                               for chunk in rows.split(max(1, batch_size // count))])
            del chunks
            image = image.rows(order.argsort())
        return Exogenous(attributes, image, draws)

    @torch.no_grad()
    def predict(self, noise: Exogenous, do: Do | None = None, temperature: float = 1.0, effect: str = "total") -> dict[str, Tensor]:
        """The world that ``noise`` makes under ``do``: attributes ``(B,)`` and ``image`` ``(B, C, H, W)``, of draws their mean."""
        attributes, count = self.attributes.predict(noise.attributes, do), noise.draws or 1
        parents = {name: attributes[name].repeat(count) for name in self.graph.image.parents}
        image = self.image.predict(noise.image, parents, temperature, effect)
        return {**attributes, "image": image.view(count, -1, *image.shape[1:]).mean(0)}

    @torch.no_grad()
    def counterfactual(self, observed: Values, do: Do, draws: int | None = None, temperature: float = 1.0,
                       generator: torch.Generator | None = None, batch_size: int = 256, noise: Exogenous | None = None,
                       effect: str = "total") -> Counterfactual:
        """What ``observed`` would have been under ``do``.

        Laws: ``do = {}`` is the identity; only descendants of intervened variables change, all else is bit-identical.

        Args:
            do: for each intervened attribute a number, a tensor ``(B,)``, or a function of the present value.
            draws: number of posterior draws of the image's latents, and, where the model is calibrated, of its effects' error;
                without it, one answer at their mean.
            temperature: of the pixel residual; 1 keeps every detail of the image, 0 shows what the latents explain.
            batch_size: images that are computed at once.
            noise: what :meth:`abduct` said of this very observation; then nothing is inferred again, and ``draws`` is its.
            effect: of a latent mediator, ``total``, ``direct`` (its latents stay) or ``indirect`` (only they change).

        Raises:
            SchemaError: for unknown variables, values without support, wrong lengths or shapes.
        """
        observed = self._checked(observed)
        if draws is not None and draws < 1:
            raise SchemaError(f"draws={draws} must be at least 1")
        rows = len(observed["image"])
        if noise is not None:
            if len(noise.image) != rows * (noise.draws or 1) or draws not in (None, noise.draws):
                raise SchemaError(f"the noise is that of {len(noise.image) // (noise.draws or 1)} images and draws={noise.draws}; asked "
                                  f"are {rows} images and draws={draws}")
            draws = noise.draws
        values, beyond = resolve_do(self.graph, do, observed, rows)
        attributes = self.attributes.counterfactual(observed, values, generator, noise.attributes if noise else None)
        changed = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for parent in self.graph.image.parents:
            changed |= attributes[parent] != observed[parent]
        images = observed["image"].repeat(draws or 1, 1, 1, 1, 1)
        if changed.any():
            shown = {name: attributes[name].repeat(draws or 1, 1) for name in self.graph.image.parents}
            if draws and self.calibration:
                shown = self.calibration.jitter(self.graph, values, shown, generator)
            draw = drawing(generator, self.device) if draws else None
            for chunk in changed.nonzero().squeeze(1).split(max(1, batch_size // (draws or 1))):
                parents = {name: value[:, chunk].flatten() for name, value in shown.items()}
                part = self._abduct_images(observed, chunk, draw, draws or 1) if noise is None else self._rows(noise, chunk)
                images[:, chunk] = self.image.predict(part, parents, temperature, effect).view(draws or 1, len(chunk), *images.shape[2:])
        mean = observed["image"].clone()
        mean[changed] = images[:, changed].mean(0)  # elsewhere all draws are the observation, which a mean would round
        return Counterfactual(attributes, mean, beyond, images if draws else None)

    @torch.no_grad()
    def regenerate(self, observed: Values, temperature: float = 1.0, generator: torch.Generator | None = None,
                   noise: Exogenous | None = None, batch_size: int = 256) -> Tensor:
        """Abduct and predict with the same parents, ``(B, C, H, W)``: the null intervention without its short cut.

        At temperature 1 it returns the image by construction; below, it shows what latents and parents explain.
        """
        observed = self._checked(observed)
        noise = self.abduct(observed, generator, batch_size=batch_size) if noise is None else noise
        count, images = noise.draws or 1, []
        for chunk in torch.arange(len(observed["image"]), device=self.device).split(batch_size):
            parents = {name: observed[name][chunk].repeat(count) for name in self.graph.image.parents}
            image = self.image.predict(self._rows(noise, chunk), parents, temperature, "total")
            images.append(image.view(count, -1, *image.shape[1:]).mean(0))
        return torch.cat(images)

    def _abduct_images(self, observed: Values, chunk: Tensor, draw: Draw | None, draws: int) -> ImageNoise:
        """The noise of rows ``chunk``, ``(K·b, …)``, draw by draw."""
        parents = {name: observed[name][chunk] for name in self.graph.image.parents}
        return self.image.abduct(observed["image"][chunk], parents, draw, draws)

    def _rows(self, noise: Exogenous, chunk: Tensor) -> ImageNoise:
        """The noise of the rows ``chunk``, ``(K·b, …)``, draw by draw."""
        count = noise.draws or 1
        size = len(noise.image) // count
        if len(chunk) == size:
            return noise.image
        return noise.image.rows((chunk + size * torch.arange(count, device=self.device)[:, None]).flatten())

    # ------------------------------------------------------------------------------------------------ other questions
    @torch.no_grad()
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

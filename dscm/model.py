"""Attributes and image merged into one deep structural causal model: abduct, act, predict.

Pawlowski, Castro & Glocker 2020, *Deep structural causal models for tractable counterfactual inference*; the three
steps are Pearl's (2009, theorem 7.1.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from datasets.arguments import whole
from datasets.memory import check_memory
from datasets.schema import Graph, SchemaError
from dscm.capabilities import Capabilities
from dscm.checks import check_draws, check_observation, check_prediction
from dscm.jitter.spread import Calibration, mechanism_hash
from dscm.results import Counterfactual, Exogenous
from mechanisms.image.base import Draw, ImageMechanism, ImageNoise
from mechanisms.image.registry import FOLDER as IMAGE_FOLDER
from mechanisms.image.registry import load_image_mechanism
from mechanisms.runs.files import RunError
from mechanisms.runs.folder import recorded
from mechanisms.runs.placement import check_single_precision, usable
from mechanisms.training.noise import drawing, reproducible
from mechanisms.training.state import WEIGHTS
from pgm.interventions import Do, resolve_do
from pgm.options import FOLDER as ATTRIBUTES_FOLDER
from pgm.scm import AttributeSCM, load_attributes

Values = Mapping[str, Tensor]


class DSCM:
    """One deep structural causal model, from a Pyro program of the attributes and an image mechanism.

    Observations are mappings ``{name: (B,)}`` with ``image``, float in [0, 1], ``(B, C, H, W)``. Results live on the
    model's device. What is drawn comes from the ``generator``; without one, from one that is seeded with 0, so that the
    same call gives the same answer, whatever torch's global seed, which is neither read nor moved.

    >>> from mechanisms.image.registry import build
    >>> from datasets import Variable
    >>> graph = Graph([Variable("dose", "real"), Variable("cured", "binary", ("dose",)),
    ...                Variable("image", "image", ("cured",), shape=(1, 4, 4))])
    >>> model = DSCM(AttributeSCM(graph), build("vae", graph))  # untrained; DSCM.load(run) opens a trained one
    >>> observed = model.sample(2)
    >>> answer = model.counterfactual(observed, {"cured": 1}, draws=3)
    >>> answer["cured"].tolist(), answer.draws.shape, answer.attribute_draws["dose"].shape
    ([1, 1], torch.Size([3, 2, 1, 4, 4]), torch.Size([3, 2]))
    >>> noise = model.abduct(observed)  # once, for many interventions
    >>> [tuple(model.counterfactual(observed, do, noise=noise).image.shape) for do in ({"cured": 0}, {"dose": lambda dose: dose + 1})]
    [(2, 1, 4, 4), (2, 1, 4, 4)]

    Args:
        calibration: how far draws vary beyond the latents' own uncertainty, see :mod:`dscm.jitter.spread`.

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
            RunError: for a missing folder or mechanism, a damaged file, mechanisms of different graphs, or a device that this
                machine lacks.
        """
        if not isinstance(run, (str, Path)):
            raise RunError(f"run={run!r} is a {type(run).__name__}; give the path of a run folder")
        run, device = Path(run), usable(device)
        recorded(run)
        for folder, command in ((ATTRIBUTES_FOLDER, "pgm.train"), (IMAGE_FOLDER, "mechanisms.train")):
            if not (run / folder / WEIGHTS).exists():
                raise RunError(f"{run} has no {folder} mechanism yet; train it first: python -m {command} --run {run}")
        attributes = load_attributes(run / ATTRIBUTES_FOLDER / WEIGHTS)
        image = load_image_mechanism(run / IMAGE_FOLDER / WEIGHTS)
        return cls(attributes, image, Calibration.load(run, mechanism_hash(run / IMAGE_FOLDER))).to(device)

    def to(self, device: str | torch.device) -> DSCM:
        device = usable(device)
        self.attributes.to(device)
        self.image.to(device)
        return self

    @property
    def graph(self) -> Graph:
        return self.image.graph

    @property
    def device(self) -> torch.device:
        return self.attributes.device

    @property
    def capabilities(self) -> Capabilities:
        """What an evaluation may ask for, given the image mechanism."""
        return Capabilities(abduct=True, draws=True, temperature=self.image.tempered, effects=self.image.effects, regenerate=True,
                            log_prob=self.image.bounded)

    # ------------------------------------------------------------------------------------------------ the three steps
    @torch.no_grad()
    def abduct(self, observed: Values, generator: torch.Generator | None = None, draws: int | None = None,
               batch_size: int = 256) -> Exogenous:
        """u ~ p(u | observation): the one pass through the encoder that any number of interventions can share.

        Args:
            generator: of discrete attributes' noise, and of the latents if they are drawn.
            draws: K posterior draws of all noise. Without it, one draw of the discrete attributes' noise and the mean of the
                image's latents, which errs less.
            batch_size: images that are computed at once.
        """
        observed, draws, batch_size = self._observed(observed), check_draws(draws), whole(batch_size, "batch_size", 1)
        generator = reproducible(generator)
        draw = drawing(generator, self.device) if draws else None
        attributes = self.attributes.infer(_repeated(observed, draws), generator)
        rows, count = torch.arange(len(observed["image"]), device=self.device), draws or 1
        chunks = [self._abduct_images(observed, chunk, draw, count) for chunk in rows.split(max(1, batch_size // count))]
        image = chunks[0] if len(chunks) == 1 else type(chunks[0]).cat(chunks)
        if count > 1 and len(chunks) > 1:  # chunk by chunk, each draw by draw → draw by draw over all rows
            order = torch.cat([chunk.repeat(count) + len(rows) * torch.arange(count, device=self.device).repeat_interleave(len(chunk))
                               for chunk in rows.split(max(1, batch_size // count))])
            del chunks
            image = image.rows(order.argsort())
        return Exogenous(attributes, image, draws)

    @torch.no_grad()
    def predict(self, noise: Exogenous, do: Do | None = None, temperature: float = 1.0, effect: str = "total") -> dict[str, Tensor]:
        """The world that ``noise`` makes under ``do``: attributes ``(B,)`` and ``image`` ``(B, C, H, W)``.

        Of several draws they are the means, or the class that most of them have; see :class:`Counterfactual`.
        """
        temperature, count = check_prediction(self.image, temperature, effect), noise.draws or 1
        world = self.attributes.predict(noise.attributes)
        if do is not None:
            rows = len(noise.image) // count
            natural = {name: value[:rows] for name, value in world.items()}  # of all draws the same, since all were observed
            values, _ = resolve_do(self.graph, do, natural, rows)
            world = self.attributes.act(world, noise.attributes, _repeated(values, noise.draws))
        image = self.image.predict(noise.image, world, temperature, effect)
        if noise.draws is None:
            return {**world, "image": image}
        return {**{name: _centre(value.view(count, -1)) for name, value in world.items()},
                "image": image.view(count, -1, *image.shape[1:]).mean(0)}

    @torch.no_grad()
    def counterfactual(self, observed: Values, do: Do, draws: int | None = None, temperature: float = 1.0,
                       generator: torch.Generator | None = None, batch_size: int = 256, noise: Exogenous | None = None,
                       effect: str = "total") -> Counterfactual:
        """What ``observed`` would have been under ``do``.

        Laws: ``do = {}`` is the identity; only descendants of intervened variables change, all else is bit-identical.

        Args:
            do: for each intervened attribute a number, a tensor ``(B,)``, or a function of the present value.
            draws: K posterior draws of the noise of discrete attributes and of the image's latents, and, where the model is
                calibrated, of its effects' error. Without it, one draw of the discrete attributes, and an image at the
                latents' mean.
            temperature: of the pixel residual; 1 keeps every detail of the image, 0 shows what the latents explain.
            batch_size: images that are computed at once.
            noise: what :meth:`abduct` said of this very observation; then nothing is inferred again, and ``draws`` is its.
            effect: of a latent mediator, ``total``, ``direct`` (its latents stay) or ``indirect`` (only they change).

        For instance, ``model.counterfactual(observed, {"thickness": 3.0}, draws=16).attribute_draws["intensity"]``.

        Raises:
            SchemaError: for unknown variables, values without support, wrong lengths or shapes.
        """
        observed, draws, batch_size = self._observed(observed), check_draws(draws), whole(batch_size, "batch_size", 1)
        temperature, generator = check_prediction(self.image, temperature, effect), reproducible(generator)
        rows = len(observed["image"])
        if noise is not None:
            if len(noise.image) != rows * (noise.draws or 1) or draws not in (None, noise.draws):
                raise SchemaError(f"the noise is that of {len(noise.image) // (noise.draws or 1)} images and draws={noise.draws}; asked "
                                  f"are {rows} images and draws={draws}")
            draws = noise.draws
        values, beyond = resolve_do(self.graph, do, observed, rows)
        repeated = _repeated(observed, draws)
        inferred = self.attributes.infer(repeated, generator) if noise is None else noise.attributes
        world = self.attributes.act(repeated, inferred, _repeated(values, draws))
        world = {name: value.view(draws or 1, rows) for name, value in world.items()}
        moved = torch.zeros(draws or 1, rows, dtype=torch.bool, device=self.device)
        for parent in self.graph.image.parents:
            moved |= world[parent] != observed[parent]
        changed = moved.any(0)
        check_memory(8 * observed["image"].numel() * (draws or 1), f"draws={draws} of {rows} images",
                     "Take fewer draws, or fewer images at a time", SchemaError)
        images = observed["image"].repeat(draws or 1, 1, 1, 1, 1)
        if changed.any():
            shown = {name: world[name] for name in self.graph.image.parents}
            if draws and self.calibration:
                shown = self.calibration.jitter(self.graph, values, shown, generator)
            draw = drawing(generator, self.device) if draws else None
            for chunk in changed.nonzero().squeeze(1).split(max(1, batch_size // (draws or 1))):
                parents = {name: value[:, chunk].flatten() for name, value in shown.items()}
                part = self._abduct_images(observed, chunk, draw, draws or 1) if noise is None else self._rows(noise, chunk)
                answer = self.image.predict(part, parents, temperature, effect).view(draws or 1, len(chunk), *images.shape[2:])
                images[:, chunk] = torch.where(moved[:, chunk, None, None, None], answer, images[:, chunk])
        mean = observed["image"].clone()
        mean[changed] = images[:, changed].mean(0)  # elsewhere all draws are the observation, which a mean would round
        return Counterfactual({name: _centre(value) for name, value in world.items()}, mean, beyond,
                              images if draws else None, world if draws else None)

    @torch.no_grad()
    def regenerate(self, observed: Values, temperature: float = 1.0, generator: torch.Generator | None = None,
                   noise: Exogenous | None = None, batch_size: int = 256) -> Tensor:
        """Abduct and predict with the same parents, ``(B, C, H, W)``: the null intervention without its short cut.

        At temperature 1 it returns the image by construction; below, it shows what latents and parents explain.
        """
        temperature, batch_size = check_prediction(self.image, temperature), whole(batch_size, "batch_size", 1)
        noise = self.abduct(observed, generator, batch_size=batch_size) if noise is None else noise
        observed = self._observed(observed)
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
        check_single_precision(self.image)
        generator, temperature = reproducible(generator), check_prediction(self.image, temperature)
        attributes = self.attributes.sample(size, do, generator)
        noise = self.image.draw_noise(size, drawing(generator, self.device))
        return {**attributes, "image": self.image.predict(noise, attributes, temperature)}

    @torch.no_grad()
    def log_prob(self, observed: Values, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """log p of each variable given its parents in nats, ``(B,)``; of the image a lower bound, one draw of z.

        An image mechanism without a bound leaves ``image`` out.
        """
        observed = self._observed(observed)
        if not self.image.bounded:
            return self.attributes.log_prob(observed)
        bound = -self.image.free_energy(observed["image"], observed, drawing(reproducible(generator), self.device))
        return {**self.attributes.log_prob(observed), "image": bound}

    def _observed(self, observed: Values) -> dict[str, Tensor]:
        """The observation, checked and on the model's device."""
        check_single_precision(self.attributes, self.image)
        return check_observation(self.graph, observed, self.device)



def _repeated(values: Values, draws: int | None) -> dict[str, Tensor]:
    """Attributes ``(B,)`` → ``(K·B,)``, draw by draw; what else there is, an image, is left out."""
    return {name: value.repeat(draws or 1) for name, value in values.items() if value.ndim == 1}


def _centre(draws: Tensor) -> Tensor:
    """``(K, B) → (B,)``: the mean, or of classes the most frequent one; exactly the value where all draws agree."""
    if not draws.is_floating_point():
        return draws.mode(0).values
    return torch.where((draws == draws[0]).all(0), draws[0], draws.mean(0))

"""q(attribute | image): the causes of an image read off it, by one network with a head for each.

They run against the direction of causation, so they are no mechanisms of the model: they judge its counterfactuals
(does x* show the attributes that it should?) and guide its counterfactual training. ``mechanisms.predictors`` fits them
on decorrelated data (:mod:`mechanisms.anticausal.decorrelate`), so that none reads one cause off another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.ranges import check_ranges
from datasets.schema import Graph, SchemaError, Variable
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.base import term_of
from mechanisms.image.likelihood import soft_bound
from mechanisms.runs.files import RunError, check_finite, load, rebuilt, understanding
from mechanisms.runs.folder import graph_of
from mechanisms.training.noise import Noise
from mechanisms.training.state import WEIGHTS

FOLDER = "predictors"
_LOG_SCALE = (-5.0, 2.0)  # of the standardised coordinate: below e^-5 of a standard deviation nothing is read
_QUANTILES, _HIDDEN = 24, 128  # of brightness: from either end, and widths of the layers that read them
_FINEST, _COARSEST = 2, 4  # the stem halves the resolution; the trunk ends where no side has more than 4 places


class NormedBlock(nn.Module):
    """h + conv(act(norm(conv(act(norm(h)))))), with group norm: no statistics of batches, so none for weights' averages to miss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_group_norm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convs[-1].weight)

    def forward(self, h: Tensor) -> Tensor:
        inner = h
        for norm, conv in zip(self.norms, self.convs, strict=True):
            inner = conv(F.silu(norm(inner)))
        return h + inner


class Predictors(nn.Module):
    """q(a_k | x) for every direct cause a_k of the image: one residual trunk, F features, one linear head each.

    A continuous attribute is Gaussian in its standardised unconstrained coordinate (:meth:`datasets.Variable.unconstrain`),
    with mean and scale from the image; a discrete one is categorical. Images are float in [0, 1], ``(B, C, H, W)``, of
    any size; attributes are in physical units, ``(B,)``. Everything is differentiable in images and weights.

    Args:
        graph: with statistics of the training split.
        config: size of the network.

    Attributes:
        names: the attributes that are read, in alphabetical order.

    Raises:
        UserError: for an image without causes, or a size below 1.
    """

    def __init__(self, graph: Graph, config: PredictorConfig | None = None) -> None:
        super().__init__()
        self.graph, self.config = graph, config or PredictorConfig()
        self.names = graph.image.parents
        if not self.names:
            raise SchemaError("the image has no causes in this graph, so there is nothing for predictors to read")
        check_ranges(self.config)
        channels, height, length = graph.image.shape
        width, layers = self.config.width, []
        self.stem = nn.Conv2d(channels, width, 5, stride=_FINEST, padding=2)
        places = (-(-height // _FINEST), -(-length // _FINEST))
        while True:
            layers += [NormedBlock(width) for _ in range(self.config.blocks)]
            if max(places) <= _COARSEST:
                break
            wider = min(2 * width, 4 * self.config.width)
            layers.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
            width, places = wider, (-(-places[0] // 2), -(-places[1] // 2))
        self.trunk = nn.Sequential(*layers, _group_norm(width), nn.SiLU())
        self.brightness = nn.Sequential(nn.Linear(channels * 2 * _QUANTILES, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU())
        self.summary = nn.Linear(width * places[0] * places[1] + _HIDDEN, self.config.features)
        self.heads = nn.ModuleDict({_head(v): nn.Linear(self.config.features, v.cardinality if v.discrete else 2) for v in self.variables})
        self.to(memory_format=torch.channels_last)

    @property
    def variables(self) -> tuple[Variable, ...]:
        return self.graph.image_parents

    # ------------------------------------------------------------------------------------------------ reading images
    def features(self, images: Tensor) -> Tensor:
        """What all heads read, ``(B, F)``; also good for distances between images."""
        with torch.autocast(images.device.type, enabled=False):  # a grey level of 256 does not survive half precision
            stem, brightness = self.stem(images * 2 - 1), self.brightness(4 * quantiles(images) - 2)
        shape = self.trunk(stem).flatten(1).float()
        with torch.autocast(images.device.type, enabled=False):
            return self.summary(torch.cat([shape, brightness], 1))

    def _read(self, features: Tensor, noise: Tensor | float = 1.0) -> dict[str, Tensor]:
        """Logits ``(B, K)`` of a discrete attribute; mean and log standard deviation ``(B, 2)`` of a continuous one.

        ``noise`` multiplies what discrete attributes are read from; a measurement to a hundredth would only suffer.
        """
        with torch.autocast(features.device.type, enabled=False):
            inner = F.silu(features)
            return {v.name: self.heads[_head(v)](inner * noise if v.discrete else inner) for v in self.variables}

    def _log_prob(self, read: Mapping[str, Tensor], attributes: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """log q(a_k | x) in nats and the scale σ of q, 1 where discrete; ``{name: (B,)}`` each."""
        terms, scales = {}, {}
        for variable in self.variables:
            output, value = read[variable.name], attributes[variable.name]
            if variable.discrete:
                terms[variable.name] = output.log_softmax(-1).gather(-1, value.long().unsqueeze(-1)).squeeze(-1)
                scales[variable.name] = torch.ones_like(terms[variable.name])
                continue
            log_scale = soft_bound(output[:, 1], *_LOG_SCALE)
            scales[variable.name] = torch.exp(log_scale)
            z = (variable.unconstrain(value) - output[:, 0]) / scales[variable.name]
            terms[variable.name] = -0.5 * z * z - log_scale - 0.5 * math.log(2 * math.pi)
        return terms, scales

    def log_prob(self, images: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """log q(a_k | x) in nats, ``{name: (B,)}``; of a continuous attribute the density of its standardised coordinate.

        Args:
            attributes: in physical units; only the image's direct causes are looked at.
        """
        return self._log_prob(self._read(self.features(images)), attributes)[0]

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The median in physical units, or the most probable class, ``{name: (B,)}``."""
        return self.read(images)[0]

    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """q(class | x) of the discrete attributes, ``{name: (B, K)}``."""
        return self.read(images)[1]

    def read(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """:meth:`predict`, :meth:`probabilities` and :meth:`features` in one pass of the network."""
        features = self.features(images)
        read = self._read(features)
        predicted = {v.name: read[v.name].argmax(-1) if v.discrete else v.constrain(read[v.name][:, 0]) for v in self.variables}
        return predicted, {v.name: read[v.name].softmax(-1) for v in self.variables if v.discrete}, features

    # ------------------------------------------------------------------------------------------------ training
    def forward(self, batch: Mapping[str, Tensor], noise: Noise | None = None, progress: float = 1.0) -> dict[str, Tensor]:
        """−log q(a_k | x) of each attribute in nats and what is minimised, ``loss``; ``(B,)`` each.

        The loss is Σ_k σ_k·(−log q(a_k | x)), σ_k held constant (Seitzer et al. 2022, *On the pitfalls of heteroscedastic
        uncertainty estimation*, β = ½): the gradient of a Gaussian's mean is z instead of z/σ, so that the attributes that
        are read to a hundredth do not take the trunk from those that are hard. In training, the features that discrete
        attributes are read from are multiplied by 1 + dropout·ε, ε ~ N(0, 1) (Srivastava et al. 2014, *Dropout*, §10).
        """
        features, factor = self.features(batch["image"]), 1.0
        if self.training and noise is not None and self.config.dropout:
            factor = 1 + self.config.dropout * noise(*features.shape)
        terms, scales = self._log_prob(self._read(features, factor), batch)
        loss = -torch.stack([scales[name].detach() * term for name, term in terms.items()]).sum(0)
        return {"loss": loss, **{term_of(name): -term for name, term in terms.items()}}


def _head(variable: Variable) -> str:
    """As in :class:`pgm.AttributeSCM`: modules refuse keys that are attributes of theirs, such as ``type``."""
    return f"q_{variable.name}"


def quantiles(images: Tensor) -> Tensor:
    """The grey levels that 0.2 % … 50 % of a channel's pixels exceed, and 50 % … 0.2 % fall short of, ``(B, C·48)``.

    Normalised activations tell shapes well and brightness badly; these tell brightness and no shape. Shares are evenly
    spaced on a logarithmic scale, because a thin stroke is few pixels. (A small
    network read the intensity of Morpho-MNIST to 2.8 of 255 from a histogram of 16 bins, to 2.1 from 16 quantiles.)
    """
    ordered = images.flatten(2).sort(-1, descending=True).values
    last = ordered.shape[-1] - 1
    few = (torch.logspace(math.log10(0.002), math.log10(0.5), _QUANTILES, device=images.device) * last).round().long()
    return ordered[..., torch.cat([few, last - few])].flatten(1)


def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, max(1, width // 16)), width)


def describe(model: Predictors) -> dict[str, Any]:
    """Plain values that rebuild ``model``; stored with its weights."""
    return {"kind": FOLDER, "graph": model.graph.to_dict(), "config": asdict(model.config)}


def load_predictors(run: Path, device: str | torch.device = "cpu") -> Predictors:
    """The predictors of a run folder, in eval mode, weights frozen; gradients still flow to images.

    Raises:
        RunError: for a folder without predictors, a damaged file, broken weights, or predictors of another graph.
    """
    run = Path(run)
    theirs, path, again = graph_of(run), run / FOLDER / WEIGHTS, f"python -m mechanisms.predictors --run {run}"
    if not path.exists():
        raise RunError(f"{run} has no predictors yet; train them first: {again}, with the same data set")
    state = load(path, FOLDER)
    with understanding(path):
        graph, config = Graph.from_dict(state["graph"]), PredictorConfig(**state["config"])
    if difference := graph.difference(theirs):
        raise RunError(f"the predictors in {path} are of another graph or training split than {run} ({difference}); "
                       f"train them again: {again} --overwrite")
    model = rebuilt(path, lambda: Predictors(graph, config), state.get("weights"))
    check_finite(model, path, f"Train the predictors again: {again} --overwrite")
    return model.eval().requires_grad_(False).to(device)

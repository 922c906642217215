"""The error to the truth: counterfactual images against what the known process would have shown.

Published metrics of image counterfactuals judge a model by other models (predictors, Fréchet features) or by itself
(composition, reversibility). Where a data set knows its own process, the true counterfactual image is known too, and the
error to it is the first figure to look at. Every figure stands beside its floor: copying the observed image, or the same
measurement made on the true image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from datasets.base import CausalDataset
from datasets.schema import Graph, SchemaError, Variable
from dscm.model import Counterfactual
from mechanisms.noise import seeded

Values = Mapping[str, Tensor]


class Model(Protocol):
    """What is scored: a :class:`dscm.DSCM`, or anything that answers like one."""

    @property
    def graph(self) -> Graph: ...

    @property
    def device(self) -> torch.device: ...

    def counterfactual(self, observed: Values, do: Values, draws: int | None = None, temperature: float = 1.0,
                       generator: torch.Generator | None = None) -> Counterfactual: ...

    def log_prob(self, observed: Values, generator: torch.Generator | None = None) -> Values: ...


@dataclass(frozen=True)
class DrawnIntervention:
    """``do(variable = values)`` on the rows ``index`` of a split, both ``(B,)``: drawn once, shared by all models."""

    variable: str
    index: Tensor
    values: Tensor

    @property
    def name(self) -> str:
        return f"do({self.variable})"

    @property
    def do(self) -> dict[str, Tensor]:
        return {self.variable: self.values}


# -------------------------------------------------------------------------------------------------------- distances
def image_error(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each image on the 0–255 scale, ``(B,)``, of images ``(B, C, H, W)`` in [0, 1]."""
    return (images - target).abs().flatten(1).mean(1) * 255


def attribute_error(variable: Variable, values: Tensor, target: Tensor) -> Tensor:
    """``|a − a*|`` in physical units, or 1 where the class is wrong and 0 where it is right, ``(B,)``."""
    return (values != target).float() if variable.discrete else (values - target).abs()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error over independent values ``(B,)``, at least two."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


# -------------------------------------------------------------------------------------------------------- questions
def draw_interventions(dataset: CausalDataset, split: str = "test", count: int = 256, seed: int = 0) -> list[DrawnIntervention]:
    """One intervention for each variable whose ``do`` has a true image, in the order of the graph.

    They concern the first ``count`` rows: in a generated split of D digits, rows 0..D−1 show different digits. Values
    come from the training split's marginal, so that no model has to extrapolate in the variable itself; classes are
    drawn among those that differ from the observed one. They are a function of data set, split, count and seed alone.

    Returns:
        An empty list for a data set that does not know its own process.

    Raises:
        SchemaError: for a count below 2 (no standard error) or larger than the split, or an unknown split.
    """
    observed = dataset.split(split)
    if not 2 <= count <= len(observed):
        raise SchemaError(f"count={count}: the {split} split of {dataset.title} has {len(observed)} rows; take 2..{len(observed)}")
    index, training = torch.arange(count), dataset.split("train").attributes
    drawn = []
    for position, variable in enumerate(dataset.schema.attributes):
        if not dataset.has_truth([variable.name]):
            continue
        generator, pool = seeded(seed, position), training[variable.name]
        if variable.discrete:
            values = _other_classes(pool, observed.attributes[variable.name][:count], variable.cardinality, generator)
        else:
            values = pool[torch.randint(len(pool), (count,), generator=generator)]
        drawn.append(DrawnIntervention(variable.name, index, values))
    return drawn


def _other_classes(pool: Tensor, observed: Tensor, cardinality: int, generator: torch.Generator) -> Tensor:
    """A class for each row, by its frequency in ``pool`` among the classes that differ from ``observed``."""
    weights = torch.bincount(pool, minlength=cardinality).float().repeat(len(observed), 1)
    weights[torch.arange(len(observed)), observed] = 0
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


# -------------------------------------------------------------------------------------------------------- answers
def score_truth(dscm: Model, dataset: CausalDataset, split: str = "test", count: int = 256, seed: int = 0,
                temperature: float = 1.0, draws: int | None = None, border: int | None = None) -> list[dict[str, Any]]:
    """Score counterfactuals against the true ones, one row for each of :func:`draw_interventions`.

    Args:
        temperature: of the pixel residual; 1 keeps every detail of the observed image.
        draws: posterior draws of the image's latents; their mean is scored. None takes the latents' mean, one answer.
        border: pixels on each side that image scores leave out; the data set's own border unless given. A padded
            border is right for every model and dilutes the error: MNIST's 28² padded to 32² divides it by 1.31.

    Returns:
        Rows of plain values, empty where nothing is known. Errors are means over images, ``…_se`` their standard errors:

        - ``intervention, variable, dataset, split, count, seed, temperature, draws, border``: what was asked;
        - ``l1``: to the true image, on 0–255; ``l1_true_parents``: the same with the image's *true* parents instead
          of the SCM's, which leaves the image mechanism's own error; ``l1_identity``: the floor of copying x;
        - ``psnr`` in dB of the mean squared error over all images, infinite if that is 0, and ``ssim``, each with
          ``…_identity``;
        - ``attributes``: for each descendant ``error`` against the true value in physical units (share of wrong classes
          where discrete) and ``identity``, the error of leaving it as observed;
        - ``measured``: for each attribute that ``dataset.measure`` reads off an image: ``error`` of the reading on the
          counterfactual image against the true value; ``truth``, the floor: the same on the true image; ``identity``: on
          the observed image;
        - ``free_energy``: of the observed images in nats per dimension, one draw of z.

    Raises:
        SchemaError: see :func:`draw_interventions`; a border that leaves no pixel.
    """
    drawn = draw_interventions(dataset, split, count, seed)
    if not drawn:
        return []
    border = dataset.border if border is None else border
    if not 0 <= 2 * border < min(dscm.graph.image.shape[1:]):
        raise SchemaError(f"border={border} leaves nothing of images of shape {dscm.graph.image.shape}")
    observed = {name: value.to(dscm.device) for name, value in dataset.split(split).batch(drawn[0].index).items()}
    bound, bound_se = free_energy(dscm, observed, seed)
    asked = {"dataset": dataset.title, "split": split, "count": count, "seed": seed, "temperature": temperature, "draws": draws,
             "border": border, "free_energy": bound, "free_energy_se": bound_se}
    rows = []
    for intervention in drawn:
        truth = dataset.true_counterfactual(split, intervention.index, intervention.do)
        truth = {name: value.to(dscm.device) for name, value in truth.items()}
        affected = {intervention.variable, *dscm.graph.descendants([intervention.variable])} & set(dscm.graph.image.parents)
        # the latents' draws are the same for both questions: their difference is the SCM's error alone
        answers = [dscm.counterfactual(observed, do, draws, temperature, torch.Generator().manual_seed(seed))
                   for do in (intervention.do, {name: truth[name] for name in sorted(affected)})]
        rows.append({"intervention": intervention.name, "variable": intervention.variable, **asked,
                     **_image_scores(*(_inner(x, border) for x in (answers[0].image, answers[1].image, observed["image"], truth["image"]))),
                     "attributes": _attribute_scores(dscm.graph, intervention.variable, answers[0], observed, truth),
                     "measured": _measured_scores(dataset, answers[0].image, observed["image"], truth)})
    return rows


def free_energy(dscm: Model, observed: Values, seed: int = 0, batch_size: int = 256) -> tuple[float, float]:
    """−log p(x | pa) or an upper bound of it, one seeded draw of z, in nats per dimension: mean and standard error."""
    generator, images = torch.Generator().manual_seed(seed), observed["image"]
    chunks = torch.arange(len(images), device=images.device).split(batch_size)
    nats = torch.cat([-dscm.log_prob({n: v[rows] for n, v in observed.items()}, generator)["image"] for rows in chunks])
    return mean_and_error(nats / images[0].numel())


def _inner(images: Tensor, border: int) -> Tensor:
    return images[..., border:images.shape[-2] - border, border:images.shape[-1] - border]


def _image_scores(image: Tensor, with_true_parents: Tensor, observed: Tensor, truth: Tensor) -> dict[str, float]:
    scores = {}
    for suffix, guess in (("", image), ("_true_parents", with_true_parents), ("_identity", observed)):
        scores[f"l1{suffix}"], scores[f"l1{suffix}_se"] = mean_and_error(image_error(guess, truth))
    for suffix, guess in (("", image), ("_identity", observed)):
        scores[f"psnr{suffix}"] = float(peak_signal_noise_ratio(guess, truth, data_range=1.0))
        # variances of uniform patches cancel in single precision, where SSIM(x, x) can come out as 0.9999
        similarity = structural_similarity_index_measure(guess.double(), truth.double(), data_range=1.0, reduction="none")
        scores[f"ssim{suffix}"], scores[f"ssim{suffix}_se"] = mean_and_error(similarity)
    return scores


def _attribute_scores(graph: Graph, variable: str, answer: Counterfactual, observed: Values, truth: Values) -> dict[str, dict[str, float]]:
    affected = [v for v in graph.attributes if v.name in graph.descendants([variable])]
    return {v.name: _errors(v, truth[v.name], error=answer.attributes[v.name], identity=observed[v.name]) for v in affected}


def _measured_scores(dataset: CausalDataset, image: Tensor, observed: Tensor, truth: Values) -> dict[str, dict[str, float]]:
    read, read_truth, read_observed = (dataset.measure(x.cpu()) for x in (image, truth["image"], observed))
    return {name: _errors(dataset.schema[name], truth[name].cpu(), error=read[name], truth=read_truth[name], identity=read_observed[name])
            for name in read}


def _errors(variable: Variable, target: Tensor, **guesses: Tensor) -> dict[str, float]:
    scores = {}
    for key, guess in guesses.items():
        scores[key], scores[f"{key}_se"] = mean_and_error(attribute_error(variable, guess, target))
    return scores


# -------------------------------------------------------------------------------------------------------- tables
def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :func:`score_truth` as two Markdown tables under one line that says how they came about."""
    if not rows:
        return "No true counterfactuals are known for this data set."
    first = rows[0]
    latents = f"mean of {first['draws']} posterior draws" if first["draws"] else "latents at their posterior mean"
    head = (f"Error to the true counterfactual: {first['count']} images of {first['dataset']}'s {first['split']} split, interventions "
            f"of seed {first['seed']}, residual temperature {first['temperature']:g}, {latents}"
            + (f", without the {first['border']} outermost pixels on each side" if first["border"] else "") + ".\n"
            f"Free energy {first['free_energy']:.3f} ± {first['free_energy_se']:.3f} nats/dim. ± is the standard error over images.")
    images = [[r["intervention"], _figure(r, "l1"), _figure(r, "l1_true_parents"), _figure(r, "l1_identity"),
               f"{r['psnr']:.2f} ({r['psnr_identity']:.2f})", f"{r['ssim']:.4f} ({r['ssim_identity']:.4f})"] for r in rows]
    attributes = [[r["intervention"], name, how, _figure(errors, "error", 3),
                   _figure(errors, "truth", 3) if "truth" in errors else "0", _figure(errors, "identity", 3)]
                  for r in rows for how, key in (("SCM", "attributes"), ("read off the image", "measured"))
                  for name, errors in r[key].items()]
    parts = [head, markdown(("intervention", "L1 (of 255)", "with true parents", "floor: copying x", "PSNR, dB (copying)",
                             "SSIM (copying)"), images)]
    if attributes:
        parts.append(markdown(("intervention", "attribute", "how", "error", "floor: true image", "floor: as observed"), attributes))
    return "\n\n".join(parts)


def _figure(scores: Mapping[str, float], key: str, digits: int = 2) -> str:
    return f"{scores[key]:.{digits}f} ± {scores[f'{key}_se']:.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])

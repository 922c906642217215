"""Realism: are the counterfactual images, as a crowd, distributed like real ones? Fréchet distance of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.schema import SchemaError
from dscm.metrics.score import Metric, Score, named
from mechanisms.training.noise import seeded

if TYPE_CHECKING:
    from dscm.evaluation.inputs import MetricInputs
    from dscm.evaluation.readings import CaseReadings, Reading, ReferenceSet

RANK = 70
METRICS = named(
    Metric("realism_frechet", "Fréchet distance of Gaussians fitted to features of counterfactual and of real images", "", "lower",
           "copying x is perfectly real; intervened images differ from observed ones in fact; biased upwards with few images",
           label="Fréchet distance to real images", short="Fréchet distance"),
)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½)``, features ``(N, F)`` and ``(M, F)`` (Heusel et al., 2017).

    In double precision, by eigenvalues of the symmetric form: no square root of a matrix that is not symmetric, no
    complex remainder. Its bias is upwards, of the order of 1/N + 1/M: compare figures of equal numbers of images only.

    Raises:
        SchemaError: for fewer than 2F images on either side, where covariances are singular or nearly so.
    """
    width = features.shape[1]
    for name, rows in (("counterfactual", len(features)), ("real", len(reference))):
        if rows < 2 * width:
            raise SchemaError(f"a Fréchet distance of {width} features needs at least {2 * width} images, got {rows} {name} ones; "
                              "ask for more images")
    mean, covariance = _moments(features)
    other_mean, other = _moments(reference)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + covariance.trace() + other.trace() - 2 * overlap)


def real_floor(real: Tensor, count: int, generator: torch.Generator, splits: int = 4) -> float:
    """Fréchet distance between two disjoint sets of ``count`` real images, features ``(N, F)``, mean of ``splits`` choices.

    What a perfect model scores when as many of its images are compared with as many real ones: the bias of that number.

    Raises:
        SchemaError: for fewer than ``2·count`` real images, or a count that :func:`frechet_distance` refuses.
    """
    if len(real) < 2 * count:
        raise SchemaError(f"the real-vs-real floor at {count} images needs {2 * count} real ones, got {len(real)}; compare fewer")
    distances = []
    for _ in range(splits):
        order = torch.randperm(len(real), generator=generator).to(real.device)
        distances.append(frechet_distance(real[order[:count]], real[order[count:2 * count]]))
    return sum(distances) / splits


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.cpu().double()  # small matrices; not every accelerator has doubles
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every answer, by the predictors' features."""
    if inputs.references is None:
        inputs.missing["realism_frechet"] = f"no predictors, whose features it compares; {inputs.how_to_train_predictors}"
        return
    with inputs.missing_if_refused("realism_frechet"):
        floor = realism_floor(inputs.real, inputs.references, inputs.questions.seed)
        yield from [realism_score(read, inputs.real, inputs.references, floor) for read in inputs.readings]


def realism_score(read: CaseReadings, real: Reading, references: ReferenceSet, floor: float) -> Score:
    """Fréchet distance of as many counterfactual images as real ones; ``floor`` is that of :func:`realism_floor`.

    Raises:
        SchemaError: for too few images.
    """
    readings = {"answer": read.answer, "identity": real, **({"truth": read.truth} if read.truth else {})}
    distances = {name: frechet_distance(reading.features[references.chosen], references.features) for name, reading in readings.items()}
    return METRICS["realism_frechet"].score(distances.pop("answer"), count=len(references.chosen), intervention=read.case.name,
                     floors={**distances, "real": floor})


def realism_floor(real: Reading, references: ReferenceSet, seed: int) -> float:
    """The same distance between two sets of as many real images."""
    return real_floor(torch.cat([real.features[references.chosen], references.features]), len(references.chosen), seeded(seed))

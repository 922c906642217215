"""Minimality: did the image change no more than it had to?

CLD compares the step from x to x* with distances to other images. It cannot tell a good model from one that does
nothing, so two figures stand beside it that compare the change with the true one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.schema import SchemaError, Variable
from dscm.metrics.score import Metric, Score, named
from dscm.metrics.truth import changed_pixels, inner

if TYPE_CHECKING:
    from dscm.evaluation.answers import Case
    from dscm.evaluation.inputs import MetricInputs
    from dscm.evaluation.readings import CaseReadings, Reading, ReferenceSet

RANK = 60
FACTUAL_WEIGHT, COUNTERFACTUAL_WEIGHT = 0.2, 0.8

METRICS = named(
    Metric("minimality_cld", "counterfactual latent divergence: x* is nearer to x than other images of its value, and farther than x's own",
           "", "lower", "doing nothing scores 0.295, published models .27 to .29, a smaller step is not a better one",
           label="latent divergence (CLD)"),
    Metric("minimality_excess", "change where the true image does not change, per pixel of the image, of 255", "grey levels", "lower",
           "doing nothing scores 0: read it beside minimality_misplaced", label="change where there is none"),
    Metric("minimality_misplaced", "soft Jaccard distance of the change to the true change: 0 the true one, 1 none of it", "", "lower",
           "doing nothing scores 1; where the true change is small, noise weighs heavily",
           label="change misplaced, 0 to 1", short="change misplaced"),
)


def latent_divergence(factual: Tensor, counterfactual: Tensor, reference: Tensor, like_factual: Tensor,
                      like_counterfactual: Tensor) -> Tensor:
    """Counterfactual latent divergence ``log(.8·e^{P(S_x* ≤ d)} + .2·e^{P(S_x ≥ d)})``, ``(B,)``, in [0, 1].

    ``d = d(x, x*)`` is the L1 distance of features; ``S_x*`` are the distances *from x* to reference images that have
    the counterfactual value of the intervened attribute, ``S_x`` those that have the factual one. (Sanchez &
    Tsaftaris, 2022, with the KL divergence of a VAE's latents; weights and L1 of a classifier's features as in Melistas
    et al., 2024, whose code measures both sets from x.)

    Args:
        factual, counterfactual: features of x and x*, ``(B, F)``.
        reference: features of other real images, ``(N, F)``; x itself must not be among them.
        like_factual, like_counterfactual: ``(B, N)`` booleans: reference image n has that value; see :func:`same_value`.

    Raises:
        SchemaError: if an image has no reference image of its factual or its counterfactual value.
    """
    for name, like in (("factual", like_factual), ("counterfactual", like_counterfactual)):
        empty = (~like.any(1)).nonzero().flatten()
        if len(empty):
            raise SchemaError(f"image {int(empty[0])}: none of the {len(reference)} reference images has its {name} value; take more")
    step = torch.cdist(factual.unsqueeze(1), counterfactual.unsqueeze(1), p=1).flatten(1)
    distances = torch.cdist(factual, reference, p=1)
    nearer = ((distances <= step) & like_counterfactual).sum(1) / like_counterfactual.sum(1)
    farther = ((distances >= step) & like_factual).sum(1) / like_factual.sum(1)
    return torch.log(COUNTERFACTUAL_WEIGHT * nearer.exp() + FACTUAL_WEIGHT * farther.exp())


def same_value(values: Tensor, reference: Tensor, discrete: bool, bins: int = 10) -> Tensor:
    """``(B, N)`` booleans: ``values`` ``(B,)`` and ``reference`` ``(N,)`` are of one class, or fall into one bin.

    Continuous attributes hardly ever have the same value twice: they are compared by ``bins`` bins that hold equally
    many reference images. Their edges are values of reference images and the outer ones are open: no bin is empty.
    """
    if discrete:
        return values.unsqueeze(1) == reference
    inside = torch.linspace(0, 1, bins + 1, device=reference.device, dtype=reference.dtype)[1:-1]
    edges = torch.quantile(reference, inside, interpolation="lower")
    edges = edges[edges < reference.max()]  # where many share the largest value, nothing lies above it
    return torch.bucketize(values.contiguous(), edges).unsqueeze(1) == torch.bucketize(reference.contiguous(), edges)


def excess(images: Tensor, observed: Tensor, truth: Tensor) -> Tensor:
    """``Σ |x* − x| / pixels`` over the pixels where ``|truth − x| ≤ 1/255``, on 0–255, ``(B,)``.

    The sum is over those pixels, the division by all of the image's. 0 for copying x; below 1 for the truth, of which
    only changes of a single grey level are counted.
    """
    return ((images - observed).abs() * ~changed_pixels(observed, truth)).flatten(1).mean(1) * 255


def misplaced_change(images: Tensor, observed: Tensor, truth: Tensor) -> Tensor:
    """``1 − Σ min(|Δ|, |Δ°|)·[same sign] / Σ max(|Δ|, |Δ°|)`` with ``Δ = x* − x``, ``Δ° = truth − x``, in [0, 1].

    The soft Jaccard (Ružička) distance of the change to the true change: 0 for the truth, 1 for copying x, and raised
    by too little change, too much, in other places or of the wrong sign (which counts as max of the two magnitudes).

    Returns:
        ``(B',)``, one value for each image whose truth changes by more than one grey level anywhere. Of the others
        there is nothing to place, and any speck of change would count as 1; :func:`excess` is about them.

    >>> observed, truth = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    >>> misplaced_change(truth / 2, observed, truth), misplaced_change(observed, observed, truth)
    (tensor([0.5000]), tensor([1.]))
    """
    changed = changed_pixels(observed, truth).flatten(1).any(1)
    change, true_change = ((x[changed] - observed[changed]).flatten(1) for x in (images, truth))
    magnitude, true_magnitude = change.abs(), true_change.abs()
    shared = torch.minimum(magnitude, true_magnitude) * (change * true_change > 0)
    return 1 - shared.sum(1) / torch.maximum(magnitude, true_magnitude).sum(1)


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every answer: change against the true one where it is known, latent divergence where there are predictors."""
    for case in inputs.cases:
        if case.truth is not None:
            yield from change_scores(case, inputs.observed["image"], inputs.border)
    if inputs.references is None:
        inputs.missing["minimality_cld"] = f"no predictors, whose features it compares; {inputs.how_to_train_predictors}"
        return
    for read in inputs.readings:
        variable = inputs.dataset.schema[read.case.question.variable]
        with inputs.missing_if_refused(f"minimality_cld under {read.case.name}"):
            yield divergence_score(read, inputs.real, inputs.observed, inputs.references, variable)


def change_scores(case: Case, observed: Tensor, border: int) -> Iterator[Score]:
    """Change where the truth does not change, and change misplaced, of the pixels within the border."""
    answer, x, truth = (inner(images, border) for images in (case.answer["image"], observed, case.truth["image"]))
    about = {"intervention": case.name, "settings": {"border": border}}
    # changes of one grey level are none, so that the truth itself has a little
    yield METRICS["minimality_excess"].score(excess(answer, x, truth), floors={"identity": 0.0, "truth": excess(truth, x, truth)}, **about)
    misplaced = misplaced_change(answer, x, truth)
    if len(misplaced):
        yield METRICS["minimality_misplaced"].score(misplaced, floors={"identity": 1.0, "truth": 0.0}, **about)


def divergence_score(read: CaseReadings, real: Reading, observed: Mapping[str, Tensor], references: ReferenceSet,
                     variable: Variable) -> Score:
    """Counterfactual latent divergence to the reference images.

    Raises:
        SchemaError: where there is no reference image of some value.
    """
    chosen, x, rest = references.chosen, real.features[references.chosen], references.attributes[variable.name]
    like = [same_value(values[chosen], rest, variable.discrete) for values in (observed[variable.name], read.case.question.values)]
    readings = {"answer": read.answer, "identity": real, **({"truth": read.truth} if read.truth else {})}
    divergences = {name: latent_divergence(x, reading.features[chosen], references.features, *like) for name, reading in readings.items()}
    return METRICS["minimality_cld"].score(divergences.pop("answer"), intervention=read.case.name, floors=divergences)

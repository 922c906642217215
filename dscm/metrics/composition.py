"""Composition: what repeated abduction and prediction under no intervention do to an image that should come back unchanged.

An axiom of counterfactuals (Galles & Pearl, 1998; as a metric of images: Monteiro et al., 2023). It is written over callables
``images → images``, so that the residual's temperature is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from datasets.schema import SchemaError
from dscm.metrics.score import Metric, Score, named
from dscm.metrics.truth import image_error, inner

if TYPE_CHECKING:
    from dscm.evaluation.answers import Evaluator
    from dscm.evaluation.inputs import MetricInputs

Step = Callable[[Tensor], Tensor]

RANK = 20
METRICS = named(
    Metric("composition_l1", "L1 between x and x regenerated 1, 2, 10 times with its own parents, of 255", "grey levels", "lower",
           "a residual re-added at temperature 1 makes it 0 by construction: state the temperature; copying x scores 0 at any",
           label="regenerated", repeats="cycles"),
)


def composition(images: Tensor, step: Step, cycles: Iterable[int] = (1, 2, 10)) -> dict[int, Tensor]:
    """``d(x, fⁿ(x))`` with ``f`` abduction and prediction under no intervention; n → L1 of 255, ``(B,)``.

    Args:
        step: images ``(B, C, H, W)`` in [0, 1] → the same with the same parents.
        cycles: the numbers n; each cycle is computed once, the last one ends it.

    >>> import torch
    >>> composition(torch.ones(1, 1, 2, 2), lambda images: images / 2, (1, 2))
    {1: tensor([127.5000]), 2: tensor([191.2500])}

    Raises:
        SchemaError: for a number of cycles that is none.
    """
    cycles = sorted(set(cycles))
    if not cycles or cycles[0] < 1:
        raise SchemaError(f"cycles={cycles}: give numbers of 1 or more")
    errors, current = {}, images
    for cycle in range(1, cycles[-1] + 1):
        current = step(current)
        if cycle in cycles:
            errors[cycle] = image_error(current, images)
    return errors


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of a model that can regenerate images."""
    if not inputs.model.capabilities.regenerate:
        inputs.missing["composition_l1"] = "the model has no regenerate(observed), a null intervention without a short cut"
        return
    yield from composition_scores(inputs.evaluator, inputs.borders)


def composition_scores(evaluator: Evaluator, borders: Sequence[int]) -> Iterator[Score]:
    """L1 after repeated null interventions, at each temperature, with and without the border."""
    for temperature in evaluator.temperatures:
        images, step = evaluator.null_steps(temperature)
        results: list[Tensor] = []
        whole = composition(images, keeping(step, results), evaluator.config.cycles)
        for cycle, errors in whole.items():
            yield from both_borders(METRICS["composition_l1"], errors, results[cycle - 1], images, borders, temperature,
                                    {"cycles": cycle}, "")


def keeping(step: Step, results: list[Tensor]) -> Step:
    """``step``, which also appends each result to ``results``."""

    def kept(images: Tensor) -> Tensor:
        results.append(step(images))
        return results[-1]

    return kept


def both_borders(metric: Metric, whole: Tensor, images: Tensor, observed: Tensor, borders: Sequence[int], temperature: float | None,
                 settings: Mapping[str, float], intervention: str) -> Iterator[Score]:
    """The L1 of ``images`` to ``observed`` with each of the borders left out; ``whole``, ``(B,)``, is that of whole images."""
    tempered = {} if temperature is None else {"temperature": temperature}
    for border in borders:
        errors = image_error(inner(images, border), inner(observed, border)) if border else whole
        yield metric.score(errors, intervention=intervention, settings={**settings, **tempered, "border": border},
                           floors={"identity": 0.0, "truth": 0.0})

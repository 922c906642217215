"""Reversibility: what an intervention and its undoing do to an image that should come back unchanged.

An axiom of counterfactuals (Galles & Pearl, 1998; as a metric of images: Monteiro et al., 2023). It is written over callables
``images → images``, so that the residual's temperature and the intervention are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from datasets.schema import SchemaError
from dscm.metrics.composition import Step, both_borders, composition, keeping
from dscm.metrics.score import Metric, Score, named

if TYPE_CHECKING:
    from dscm.evaluation.answers import Evaluator
    from dscm.evaluation.inputs import MetricInputs
    from dscm.evaluation.questions import Question

RANK = 30
METRICS = named(
    Metric("reversibility_l1", "L1 between x and x after do and undo, 2 and 10 steps, of 255", "grey levels", "lower",
           "a model that never changes anything scores 0", label="there and back, {intervention}", repeats="steps"),
)


def reversibility(images: Tensor, forward: Step, backward: Step, steps: Iterable[int] = (2, 10)) -> dict[int, Tensor]:
    """``d(x, (b∘f)ⁿ(x))`` with ``f: pa → pa*`` and ``b: pa* → pa``; 2n → L1 of 255, ``(B,)``.

    Args:
        forward, backward: images under pa → images under pa*, and back.
        steps: the numbers of steps 2n: a round trip is two.

    >>> import torch
    >>> reversibility(torch.ones(1, 1, 2, 2), lambda images: images / 2, lambda images: images, (2,))
    {2: tensor([127.5000])}

    Raises:
        SchemaError: for a number of steps that is no round trip.
    """
    steps = sorted(set(steps))
    if not steps or steps[0] < 2 or any(step % 2 for step in steps):
        raise SchemaError(f"steps={steps}: a round trip is 2 steps; give even numbers of 2 or more")
    errors = composition(images, lambda current: backward(forward(current)), [step // 2 for step in steps])
    return {2 * cycle: error for cycle, error in errors.items()}


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every question that can be asked again of its own answer."""
    for case in inputs.cases:
        with inputs.missing_if_refused(f"reversibility_l1 under {case.name}"):
            yield from list(reversibility_scores(inputs.evaluator, case.question, inputs.borders))


def reversibility_scores(evaluator: Evaluator, question: Question, borders: Sequence[int]) -> Iterator[Score]:
    """L1 after steps there and back, at each temperature, with and without the border."""
    for temperature in evaluator.temperatures:
        images, forward, backward = evaluator.round_trip(question, temperature)
        results: list[Tensor] = []
        whole = reversibility(images, forward, keeping(backward, results), evaluator.config.steps)
        for step, errors in whole.items():
            yield from both_borders(METRICS["reversibility_l1"], errors, results[step // 2 - 1], images, borders, temperature,
                                    {"steps": step}, question.name)

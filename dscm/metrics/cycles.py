"""Composition and reversibility: what repeated abduction and prediction do to an image that should come back unchanged.

Both are axioms of counterfactuals (Galles & Pearl, 1998; as metrics of images: Monteiro et al., 2023). They are written
over callables ``images → images``, so that the residual's temperature and the intervention are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from datasets.schema import SchemaError
from dscm.metrics.score import Metric
from dscm.metrics.truth import image_error

Step = Callable[[Tensor], Tensor]

METRICS = (
    Metric("composition_l1", "L1 between x and x regenerated 1, 2, 10 times with its own parents, of 255", "grey levels", "lower",
           "a residual re-added at temperature 1 makes it 0 by construction: state the temperature; copying x scores 0 at any"),
    Metric("reversibility_l1", "L1 between x and x after do and undo, 2 and 10 steps, of 255", "grey levels", "lower",
           "a model that never changes anything scores 0"),
)


def composition(images: Tensor, step: Step, cycles: Iterable[int] = (1, 2, 10)) -> dict[int, Tensor]:
    """``d(x, fⁿ(x))`` with ``f`` abduction and prediction under no intervention; n → L1 of 255, ``(B,)``.

    Args:
        step: images ``(B, C, H, W)`` in [0, 1] → the same with the same parents.
        cycles: the numbers n; each cycle is computed once, the last one ends it.

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


def reversibility(images: Tensor, forward: Step, backward: Step, steps: Iterable[int] = (2, 10)) -> dict[int, Tensor]:
    """``d(x, (b∘f)ⁿ(x))`` with ``f: pa → pa*`` and ``b: pa* → pa``; 2n → L1 of 255, ``(B,)``.

    Args:
        forward, backward: images under pa → images under pa*, and back.
        steps: the numbers of steps 2n: a round trip is two.

    Raises:
        SchemaError: for a number of steps that is no round trip.
    """
    steps = sorted(set(steps))
    if not steps or steps[0] < 2 or any(step % 2 for step in steps):
        raise SchemaError(f"steps={steps}: a round trip is 2 steps; give even numbers of 2 or more")
    errors = composition(images, lambda current: backward(forward(current)), [step // 2 for step in steps])
    return {2 * cycle: error for cycle, error in errors.items()}

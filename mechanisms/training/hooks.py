"""What one training does otherwise than the next: which part is kept, when it is good, how it is watched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from datasets.errors import UserError
from mechanisms.training.augment import Augmentation

Means = Mapping[str, float]  # of a validation's terms
Criterion = Callable[[Means], float]  # the less the better


def loss_of(means: Means) -> float:
    return means["loss"]


def in_silence(means: Means) -> None:
    """Nothing is said of a validation."""


@dataclass(frozen=True)
class Hooks:
    """What :func:`mechanisms.training.loop.fit` asks of its caller; the defaults minimise and keep a whole model.

    Attributes:
        kept: the part of the model whose weights go to ``mechanism.pt`` and which is returned, if not all of it.
        criterion: of two validations' means of terms, the one where this is less is the better one.
        rules: further criteria by name. The averaged weights that each likes best are in ``mechanism.pt`` too, with their
            step and score: ``selected = {rule: {"step", "score", "weights"}}``.
        restarts: shares of the training, in [0, 1], at which the optimiser begins anew: where an objective changes abruptly.
        seeds: of a model that is several at once, see :mod:`experiments.training.stacked`: each batch holds the rows that every one of
            them would get under its own seed, ``(S, B, …)``; a batch that is the whole split, ``(B, …)``, is the same for all.
        watch: gets the means of terms of each validation, to warn of a training that goes nowhere while it runs.
        augment: see :mod:`mechanisms.training.augment`; applied to training batches.
    """

    kept: nn.Module | None = None
    criterion: Criterion = loss_of
    rules: Mapping[str, Criterion] = field(default_factory=dict)
    restarts: Collection[float] = ()
    seeds: Sequence[int] = ()
    watch: Callable[[Means], None] = in_silence
    augment: Augmentation | None = None


def has_statistics(model: nn.Module) -> bool:
    """Whether a training changes more of the model than its weights: running statistics, as batch norm has them."""
    return any(True for _ in model.buffers())


def check_average(model: nn.Module, ema: float, what: str) -> None:
    """The one rule about averaged weights: they do not go with statistics that belong to other weights, those of the last update.

    Raises:
        UserError: for a decay ``ema`` above 0 with a model whose statistics are not averaged; ``what`` names it.
    """
    if ema and has_statistics(model):
        raise UserError(f"--ema {ema} averages weights, but not the statistics of {what}'s batch norm, which then are of other weights; "
                        "take --ema 0")

"""Random numbers of a training: one seeded stream, the same for one process and for many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datasets.errors import UserError


class Noise:
    """Standard normal draws for a batch that may be spread over processes.

    Every process draws the noise of the *global* batch and keeps its own rows, so that two processes see exactly what
    one would. The state of the stream is saved in checkpoints.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> None:
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.seed, self.rank, self.world = seed, rank, world

    def __call__(self, rows: int, *shape: int) -> Tensor:
        """``(rows, *shape)`` standard normals; ``rows`` is this process's share of the batch."""
        drawn = torch.randn(rows * self.world, *shape, generator=self.generator, device=self.generator.device)
        return drawn[self.rank * rows : (self.rank + 1) * rows]

    def restore(self, state: Tensor, step: int) -> None:
        """Go on where ``state`` was saved; if that was on another kind of device, with a stream that depends on ``step``."""
        try:
            self.generator.set_state(state)
        except RuntimeError:  # states of processors and of GPUs differ in size
            self.generator.manual_seed(self.seed + 1_000_003 * (step + 1))


def drawing(generator: torch.Generator | None, device: torch.device | str) -> Callable[..., Tensor]:
    """``draw(rows, *shape)`` from a generator that may live on another device; the global stream if there is none."""
    home = generator.device if generator is not None else device
    return lambda rows, *shape: torch.randn(rows, *shape, generator=generator, device=home).to(device)


def some_of(available: int, count: int, *keys: int) -> Tensor:
    """``count`` of the rows 0..available-1 at random, ascending, a function of the keys; all where there are no more of them.

    Rows are often sorted, by class for instance, so that the first ones are not like the rest.
    """
    if count >= available:
        return torch.arange(available)
    return torch.randperm(available, generator=seeded(*keys))[:count].sort().values


def reproducible(generator: torch.Generator | None) -> torch.Generator:
    """``generator``, or, where none is given, one that is seeded with 0: the same call then gives the same answer.

    >>> torch.equal(torch.rand(2, generator=reproducible(None)), torch.rand(2, generator=reproducible(None)))
    True

    Raises:
        UserError: for what is no generator, a seed for instance.
    """
    if generator is None:
        return seeded(0)
    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator={generator!r} is a {type(generator).__name__}; give torch.Generator().manual_seed(…)")
    return generator


def seeded(*keys: int) -> torch.Generator:
    """A generator that is a function of the keys."""
    seed = 0
    for key in keys:
        seed = (seed * 1_000_003 + key + 1) % 2**63
    return torch.Generator().manual_seed(seed)

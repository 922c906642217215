"""Networks that do not fit into memory are refused while they are built, before a weight of theirs is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from datasets.errors import UserError
from datasets.memory import memory, size_of

TRAINED = 5  # numbers for each weight of a training: itself, its gradient, two moments of the optimiser, its average


@contextmanager
def fitting(what: str, numbers: int = TRAINED) -> Iterator[None]:
    """Count the parameters of all modules that are built inside, as they appear: their pages are not touched before they are initialised.

    Args:
        what: whose sizes these are, for the message.
        numbers: of four bytes, for each parameter.

    Raises:
        UserError: as soon as they need more memory than there is, with a size that they have at least.
    """
    total, there = 0, memory()

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal total
        total += 4 * numbers * (0 if parameter is None else parameter.numel())
        if total > there:
            raise _too_large(what, f"at least {size_of(total)}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error) or "overflow" in str(error):
            raise _too_large(what, "more memory than can be had at once") from error
        raise
    finally:
        hook.remove()


def _too_large(what: str, size: str) -> UserError:
    return UserError(f"{what} is too large: its weights need {size}; this machine has {size_of(memory())}. Choose smaller sizes")

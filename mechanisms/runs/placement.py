"""Where a model's weights are, and in which precision: checked before anything is computed with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mechanisms.runs.files import RunError


def usable(device: Any) -> torch.device:
    """``device``, if this machine has it.

    >>> usable("cpu")
    device(type='cpu')
    >>> usable("gpu")
    Traceback (most recent call last):
    mechanisms.runs.files.RunError: device='gpu' is not available here; available: cpu

    Raises:
        RunError: for what names no device, or one that this machine lacks; the message lists those that it has.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    try:
        found = torch.device(device)
        there = (found.index or 0) < counts.get(found.type, 0)
    except (RuntimeError, TypeError):
        there = False
    if not there:
        raise RunError(f"device={device!r} is not available here; available: {', '.join(name for name, count in counts.items() if count)}")
    return found


def check_single_precision(*models: nn.Module) -> None:
    """Raises RunError for weights that are not float32, naming the type: abduction and prediction are made in it."""
    for model in models:
        if (wrong := next(model.parameters()).dtype) != torch.float32:
            raise RunError(f"the weights of {type(model).__name__} are {wrong}; observations and answers are float32: call .float() on it")

"""Images of random grey levels."""

from __future__ import annotations

import torch
from torch import Tensor

from mechanisms.training.noise import seeded


def levels(*shape: int, seed: int = 0) -> Tensor:
    """Images of whole grey levels."""
    return torch.randint(0, 256, shape, generator=seeded(seed)).float() / 255

"""An image and another of random grey levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.dscm.metrics.levels import levels


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Observed images and their true counterfactuals, which differ in the upper half, by 2 grey levels or more."""
    observed, other = levels(6, 2, 16, 16), levels(6, 2, 16, 16, seed=1)
    other[..., 8:, :] = observed[..., 8:, :]
    return observed, torch.where((other - observed).abs() > 1.5 / 255, other, observed)

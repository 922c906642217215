"""Bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch

from dscm.metrics.likelihood import bits_per_dimension


def test_bits_per_dimension():
    uniform = torch.full((3,), 48 * math.log(256))  # 256 grey levels, equally likely
    assert bits_per_dimension(uniform, 48).tolist() == pytest.approx([8] * 3)

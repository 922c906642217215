"""Configuration of the predictors. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.ranges import Width, within

Blocks = within(1, 1000)
Spread = within(0, 10)


@dataclass(frozen=True)
class PredictorConfig:
    """Size of the network that reads attributes off images; what it reads follows from the graph."""

    width: Width[int] = 32
    """Channels at half of the image's resolution; they double with each halving, up to four times as many."""
    blocks: Blocks[int] = 2
    """Residual blocks at each resolution."""
    features: Width[int] = 64
    """Width of the last layer before the heads, whose activations serve as features of an image."""
    dropout: Spread[float] = 0.3
    """Standard deviation of the multiplicative noise on features in training."""

"""Configuration of the predictors. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictorConfig:
    """Size of the network that reads attributes off images; what it reads follows from the graph."""

    width: int = 32
    """Channels at half of the image's resolution; they double with each halving, up to four times as many."""
    blocks: int = 2
    """Residual blocks at each resolution."""
    features: int = 64
    """Width of the last layer before the heads, whose activations serve as features of an image."""
    dropout: float = 0.3
    """Standard deviation of the multiplicative noise on features in training."""

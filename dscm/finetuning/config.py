"""How counterfactual training is set up. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.ranges import NotNegative, check_ranges


@dataclass(frozen=True)
class FinetuneConfig:
    """Which counterfactuals are trained on, and how hard the free energy is held."""

    variables: str = ""
    """Parents of the image that are intervened on, such as thickness,intensity; all of them unless given."""
    slack: NotNegative[float] = 0.0
    """How far the free energy may rise above the pretrained model's own, in nats per dimension."""
    multiplier_rate: NotNegative[float] = 1e-2
    """Of the ascent of the constraint's multiplier, per update and nat per image of violation."""
    damping: NotNegative[float] = 100.0
    """Weight of the free energy for each nat per dimension of violation, on top of the multiplier."""
    temperature: NotNegative[float] = 1.0
    """Of the pixel residual in the counterfactuals that are trained on."""

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        check_ranges(self)

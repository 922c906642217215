"""How counterfactuals are evaluated. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datasets.ranges import AtLeastOne, Draws, NotNegative, Sample, check_ranges, within
from datasets.words import once

Cycles = within(1, 1000)  # each passes every image through the mechanism once
Steps = within(2, 1000, multiple=2, why="there and back takes an even number")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is asked beyond one answer to each question, of how many images; every score says how many it is made of."""

    parts: tuple[str, ...] = ()
    """Only these families of metrics, files of dscm/metrics/: truth, effectiveness, minimality, realism, composition, reversibility,
    commutativity, free_energy, calibration, or another of yours; all if empty."""
    draws: Draws[int] = 32
    """Posterior draws of each counterfactual whose spread is compared with the truth; 0 for none."""
    draw_images: Sample[int] = 128
    """How many images, from the first, are asked for so many draws."""
    cycle_images: Sample[int] = 128
    """How many images go through repeated null interventions, through interventions and back, and through two in either order."""
    cycles: Cycles[tuple[int, ...]] = (1, 2, 10)
    """After how many null interventions composition is measured."""
    steps: Steps[tuple[int, ...]] = (2, 10)
    """After how many steps, there and back, reversibility is measured; even numbers."""
    temperatures: NotNegative[tuple[float, ...]] = (1.0, 0.1, 0.0)
    """Of the pixel residual in composition and reversibility: at 1 it makes the former 0 by construction."""
    temperature: NotNegative[float] = 1.0
    """Of the pixel residual in every other answer: 1 keeps every detail of the image, 0 shows what the latents explain."""
    effect: Literal["total", "direct", "indirect"] = "total"
    """Of latents that lie between attributes and image, what is let act."""
    batch_size: AtLeastOne[int] = 256
    """Images that are computed at once."""

    def check(self) -> None:
        """Raises UserError for a number that makes no sense; the names of parts are checked by :func:`dscm.metrics.registry.families`."""
        check_ranges(self)
        for name in ("parts", "cycles", "steps", "temperatures"):
            once(getattr(self, name), f"--{name}")

"""Options of ``python -m dscm.counterfactual``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, NotNegative, Seed, check_ranges, within

Draws = within(1, 10_000)  # all of an image's are computed at once


@dataclass(frozen=True)
class Options:
    """Draw a grid of counterfactuals: observed images, interventions, and below each answer its difference and the truth.

    For instance: python -m dscm.counterfactual --run runs/model --do thickness=1.5,3,5 --do intensity=100,200 --out grid.png
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms."""
    do: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Interventions: name=value[,value…], name+=delta[,delta…] or name~marginal; may be repeated."""
    out: Path = Path("counterfactuals.png")
    """Image file to write: .png, .pdf, .svg, …."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the observed images come from."""
    count: AtLeastOne[int] = 8
    """How many images, from the beginning of the split."""
    rows: str = ""
    """Which images instead, as row numbers of the split: 3,17."""
    draws: Draws[int | None] = None
    """Posterior draws of the image's latents: their mean is shown, and their spread. Without it, one answer at the latents' mean."""
    temperature: NotNegative[float] = 1.0
    """Of the pixel residual: 1 keeps every detail of the image, 0 shows what the latents explain."""
    effect: Literal["total", "direct", "indirect"] = "total"
    """Of a latent mediator: direct keeps its latents, indirect changes nothing else."""
    seed: Seed[int] = 0
    """Of all draws."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for what makes no sense."""
        if not self.do:
            raise UserError("nothing to ask: give at least one intervention, such as --do thickness=1.5,3")
        check_ranges(self)

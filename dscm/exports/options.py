"""Options of ``python -m dscm.export``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, NotNegative, Seed, check_ranges, within

Draws = within(1, 10_000)  # all of a row's are computed at once


@dataclass(frozen=True)
class Options:
    """Write a data set of intervened images: each row of a split under each intervention, once or several times.

    An interrupted export goes on with the same command. Under torchrun each process writes its share of the shards.

    For instance: python -m dscm.export --run runs/model --do thickness~marginal --draws 4 --out exports/thickness
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms."""
    do: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Interventions: name=value[,value…], name+=delta[,delta…] or name~marginal; may be repeated, each is written apart."""
    out: Path = Path("export")
    """Folder to write; empty, new, or of the same export."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the observed images come from."""
    count: AtLeastOne[int | None] = None
    """How many images, from the beginning of the split; all of them if not given."""
    draws: Draws[int | None] = None
    """Posterior draws of each image's latents, each an image of its own. Without it, one answer at the latents' mean."""
    truth: bool = False
    """Also write what the true process makes of the same rows and values, where it is known."""
    format: Literal["pt", "npz", "png"] = "pt"
    """One file of tensors or arrays a shard, or one PNG an image; a CSV with a line for each image lies beside it in any case."""
    shard_size: AtLeastOne[int] = 1000
    """Rows of a shard; what is written does not depend on it, nor on the number of processes."""
    temperature: NotNegative[float] = 1.0
    """Of the pixel residual: 1 keeps every detail of the image, 0 shows what the latents explain."""
    seed: Seed[int] = 0
    """Of values drawn from a marginal, and of latents."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for what makes no sense."""
        if not self.do:
            raise UserError("nothing to export: give at least one intervention, such as --do thickness~marginal")
        check_ranges(self)

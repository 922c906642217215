"""The exogenous noise of images: what an image mechanism abducts, and makes images of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.errors import UserError


@dataclass(frozen=True)
class Factual:
    """The observed world of abducted noise.

    Attributes:
        values: of a mediator's levels, ``(B, z_dim, r, r)`` each; empty with an exogenous prior, whose values are the noise.
        parents: encoded, ``(B, P)``.
    """

    values: tuple[Tensor, ...]
    parents: Tensor


@dataclass(frozen=True)
class ImageNoise:
    """The exogenous noise of images.

    Attributes:
        latents: noise of each level from coarse to fine, ``(B, z_dim, r, r)``, standard normal a priori.
        residual: of the pixels, ``(B, C, H, W)``, with the law of the likelihood's own noise.
        factual: of abducted noise, the world that it comes from.
    """

    latents: tuple[Tensor, ...]
    residual: Tensor
    factual: Factual | None = None

    def __len__(self) -> int:
        return len(self.residual)

    def rows(self, index: Tensor | slice) -> ImageNoise:
        """The noise of the rows that ``index`` selects."""
        known = self.factual
        known = known and Factual(tuple(z[index] for z in known.values), known.parents[index])
        return ImageNoise(tuple(z[index] for z in self.latents), self.residual[index], known)

    @staticmethod
    def cat(noises: Iterable[ImageNoise]) -> ImageNoise:
        """One after the other, along rows.

        Raises:
            UserError: where some noise is abducted and some is drawn, whose predictions differ.
        """
        noises = tuple(noises)
        known = [n.factual for n in noises if n.factual is not None]
        if known and len(known) < len(noises):
            raise UserError("abducted and drawn noise do not go into one batch")
        factual = Factual(_cat([k.values for k in known]), torch.cat([k.parents for k in known])) if known else None
        return ImageNoise(_cat([n.latents for n in noises]), torch.cat([n.residual for n in noises]), factual)


def _cat(columns: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*columns, strict=True))

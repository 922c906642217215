"""The VAE with one latent vector, the field's baseline as image mechanism (Pawlowski, Castro & Glocker 2020, §4)."""

from __future__ import annotations

from datasets.errors import UserError
from datasets.schema import Graph
from mechanisms.image_mechanism import ImageMechanism
from mechanisms.image_options import ImageConfig


class VAE(ImageMechanism):
    """VAE: one latent vector of ``z_dim`` numbers at resolution 1, from which residual blocks draw all of the image.

    Raises:
        UserError: as for every image mechanism; for a decoder that does not start at resolution 1.
    """

    def __init__(self, graph: Graph, config: ImageConfig | None = None) -> None:
        super().__init__(graph, config)
        if self.levels != (1,):
            raise UserError(f"a VAE has one latent vector: its decoder starts at resolution 1, not {self.levels[0]}")

    def latent(self, stage: int, block: int) -> bool:
        return stage == block == 0

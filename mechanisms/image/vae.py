"""The VAE with one latent vector, the field's baseline as image mechanism (Pawlowski, Castro & Glocker 2020, §4)."""

from __future__ import annotations

import torch
from torch import nn

from datasets.errors import UserError
from datasets.schema import Graph
from mechanisms.image.config import ImageConfig
from mechanisms.image.latent import ImageMechanism


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

    def _initialize(self) -> None:
        """As for all, but the way through the one vector is open: signals keep their scale from image to z and from z to
        image (He et al. 2015), and the posterior starts narrow. From the usual weights z arrives a thousand times weaker,
        the decoder learns to do without it, and its rate is still 0 after 1,000 updates.
        """
        super()._initialize()
        level, z_dim = self.decoder[0][0], self.config.z_dim
        layers = [self.stem, *self.down, level.posterior_in, level.posterior_out, level.project, *self.up]
        with torch.no_grad():
            for layer in layers:
                inputs = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
                nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
            level.posterior_out.bias[z_dim:] = -2.0
            level.posterior_out.weight[z_dim:] *= 0.1

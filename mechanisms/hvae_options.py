"""Configuration of the hierarchical VAE. Apart from the model, because ``--help`` need not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HVAEConfig:
    """Topology, capacity and objective of the hierarchical VAE."""

    encoder: str = "auto"
    """Stages <resolution>b<blocks>[d<pooling>], fine to coarse, such as 8b2d2,4b2d4,1b1."""
    decoder: str = "auto"
    """Stages <resolution>b<blocks>, coarse to fine; every block is one level of latents."""
    widths: str = "auto"
    """Channels at each resolution, such as 8:96,4:128,1:256."""
    patch: int = 2
    """Pixels per side folded into channels before the first block: more is faster, 1 is the classic form. On 32² pixels, 2
    errs less than 4 in the same time."""
    z_dim: int = 16
    """Channels of each level of latents."""
    bases: int = 2
    """Basis images of the read-out, mixed linearly by the parents."""
    collinear: float = 0.8
    """Parents whose causes, where these are parents too, explain more than this share of their variance act in the
    read-out only, linearly; 1 lets every parent act on the features."""
    embedding: int = 64
    """Width of the parents' embedding that modulates the decoder's blocks."""
    beta: float = 1.0
    """Weight of the rate (the KL terms) in the free energy."""
    free_bits: float = 0.0
    """Nats of each level that are not charged."""
    beta_warmup: float = 0.1
    """Share of the training over which the rate's weight rises from 0; without it the latents tend to die at the start."""


# De Sousa Ribeiro et al. 2023, Morpho-MNIST 32²: all pixels at full resolution. Many times slower on processors.
PRESETS: dict[str, HVAEConfig] = {
    "cpu": HVAEConfig(),
    "reference": HVAEConfig(encoder="32b3d2,16b3d2,8b3d2,4b3d4,1b4", decoder="1b4,4b4,8b4,16b4,32b4",
                            widths="32:16,16:32,8:64,4:128,1:256", patch=1),
}

"""The hierarchical VAE: latents at every resolution, from coarse to fine.

Child 2021, *Very deep VAEs*; as image mechanism De Sousa Ribeiro et al. 2023, *High fidelity image counterfactuals with
probabilistic causal models*.
"""

from __future__ import annotations

from mechanisms.image.latent import ImageMechanism


class HVAE(ImageMechanism):
    """Hierarchical VAE: every block of the decoder is a level of latents, drawn given those above it."""

    def latent(self, stage: int, block: int) -> bool:
        return True

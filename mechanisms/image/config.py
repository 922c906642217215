"""Configuration of the image mechanisms. Apart from the models, because ``--help`` need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from datasets.ranges import NotNegative, Share, Width, check_ranges, within

Prior = Literal["exogenous", "mediator"]
Likelihood = Literal["gaussian", "logistic-mixture"]
Mixing = within(0, 1, why="it is the share of the prior in a mediator's latents")
Pixels = within(1, 1024)
Components = within(1, 1000)


@dataclass(frozen=True)
class ImageConfig:
    """Topology, capacity and objective of an image mechanism."""

    prior: Prior = "exogenous"
    """Of the latents: exogenous, a standard normal that never sees a parent; mediator, p(z | parents), learned."""
    mixing: Mixing[float] = 1.0
    """Of a mediator under an intervention, per level: 1 moves the latents with their prior, 0 keeps those of the image."""
    likelihood: Likelihood = "gaussian"
    """Of the pixels given latents and parents."""
    components: Components[int] = 10
    """Logistics that are mixed; the logistic mixture's alone."""
    encoder: str = "auto"
    """Stages <resolution>b<blocks>[d<pooling>], fine to coarse, such as 8b2d2,4b2d4,1b1."""
    decoder: str = "auto"
    """Stages <resolution>b<blocks>, coarse to fine; of an HVAE every block is one level of latents, of a VAE the first."""
    widths: str = "auto"
    """Channels at each resolution, such as 8:96,4:128,1:256."""
    patch: Pixels[int] = 2
    """Pixels per side folded into channels before the first block: more is faster, 1 is the classic form. On 32² pixels, 2
    errs less than 4 in the same time."""
    z_dim: Width[int] = 16
    """Channels of each level of latents."""
    bases: Components[int] = 2
    """Basis images of the read-out, mixed linearly by the parents."""
    collinear: Share[float] = 0.8
    """Parents whose causes, where these are parents too, explain more than this share of their variance act in the
    read-out only, linearly; 1 lets every parent act on the features and on a mediator's prior."""
    embedding: Width[int] = 64
    """Width of the parents' embedding that modulates the decoder's blocks."""
    beta: NotNegative[float] = 1.0
    """Weight of the rate (the KL terms) in the free energy."""
    free_bits: NotNegative[float] = 0.0
    """Nats of each level that are not charged."""
    beta_warmup: Share[float] = 0.1
    """Share of the training over which the rate's weight rises from 0; without it the latents tend to die at the start."""

    def check(self) -> None:
        """Raises UserError for an unknown name or a number that makes no sense."""
        check_ranges(self)


# De Sousa Ribeiro et al. 2023, Morpho-MNIST 32²: all pixels at full resolution. Many times slower on processors.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"encoder": "auto", "decoder": "auto", "widths": "auto", "patch": 2},
    "reference": {"encoder": "32b3d2,16b3d2,8b3d2,4b3d4,1b4", "decoder": "1b4,4b4,8b4,16b4,32b4",
                  "widths": "32:16,16:32,8:64,4:128,1:256", "patch": 1},
}

"""Configuration of the image mechanisms. Apart from the models, because ``--help`` need not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets.errors import UserError

MechanismName = Literal["vae", "hvae"]
Prior = Literal["exogenous", "mediator"]
Likelihood = Literal["gaussian", "logistic-mixture"]


@dataclass(frozen=True)
class ImageConfig:
    """Topology, capacity and objective of an image mechanism."""

    prior: Prior = "exogenous"
    """Of the latents: exogenous, a standard normal that never sees a parent; mediator, p(z | parents), learned."""
    mixing: float = 1.0
    """Of a mediator under an intervention, per level: 1 moves the latents with their prior, 0 keeps those of the image."""
    likelihood: Likelihood = "gaussian"
    """Of the pixels given latents and parents."""
    components: int = 10
    """Logistics that are mixed; the logistic mixture's alone."""
    encoder: str = "auto"
    """Stages <resolution>b<blocks>[d<pooling>], fine to coarse, such as 8b2d2,4b2d4,1b1."""
    decoder: str = "auto"
    """Stages <resolution>b<blocks>, coarse to fine; of an HVAE every block is one level of latents, of a VAE the first."""
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
    read-out only, linearly; 1 lets every parent act on the features and on a mediator's prior."""
    embedding: int = 64
    """Width of the parents' embedding that modulates the decoder's blocks."""
    beta: float = 1.0
    """Weight of the rate (the KL terms) in the free energy."""
    free_bits: float = 0.0
    """Nats of each level that are not charged."""
    beta_warmup: float = 0.1
    """Share of the training over which the rate's weight rises from 0; without it the latents tend to die at the start."""

    def check(self) -> None:
        """Raises UserError for an unknown name or a number that makes no sense."""
        for name, choices in (("prior", get_args(Prior)), ("likelihood", get_args(Likelihood))):
            if getattr(self, name) not in choices:
                raise UserError(f"unknown {name} {getattr(self, name)!r}; valid are {', '.join(choices)}")
        for name in ("patch", "z_dim", "bases", "embedding", "components"):
            if not getattr(self, name) >= 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("beta", "free_bits", "beta_warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.mixing <= 1:
            raise UserError(f"mixing={self.mixing} must lie in [0, 1]: it is the share of the prior in a mediator's latents")


# De Sousa Ribeiro et al. 2023, Morpho-MNIST 32²: all pixels at full resolution. Many times slower on processors.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"encoder": "auto", "decoder": "auto", "widths": "auto", "patch": 2},
    "reference": {"encoder": "32b3d2,16b3d2,8b3d2,4b3d4,1b4", "decoder": "1b4,4b4,8b4,16b4,32b4",
                  "widths": "32:16,16:32,8:64,4:128,1:256", "patch": 1},
}

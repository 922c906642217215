"""What image mechanisms are built of: residual blocks, and levels of latents between a prior and a posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.image.likelihood import kl_to_standard_normal, soft_bound


@dataclass(frozen=True)
class Normal:
    """N(loc, e^{2·log_scale}), elementwise."""

    loc: Tensor
    log_scale: Tensor

    def place(self, noise: Tensor) -> Tensor:
        """``loc + scale·ε``: the value that standard normal noise ε makes."""
        return self.loc + torch.exp(self.log_scale) * noise

    def standardize(self, values: Tensor) -> Tensor:
        """``ε = (z − loc)/scale``, the inverse of :meth:`place`."""
        return (values - self.loc) * torch.exp(-self.log_scale)

    def divergence(self, other: Normal) -> Tensor:
        """KL(self ‖ other) in nats, elementwise; it stays the same when both are standardised by ``other``."""
        return kl_to_standard_normal(other.standardize(self.loc), self.log_scale - other.log_scale)


class ResidualBlock(nn.Module):
    """h + conv(act((1 + scale(e)) ⊙ conv(act(h)) + shift(e))): two convolutions, modulated by the parents' embedding e."""

    def __init__(self, width: int, kernel: int, embedding: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.modulation = nn.Linear(embedding, 2 * width) if embedding else None

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        inner = self.first(F.silu(h))
        if self.modulation is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
            inner = inner * (1 + scale) + shift
        return h + self.second(F.silu(inner))


class LatentBlock(nn.Module):
    """One level: q(z_i | z_<i, x, pa) and p(z_i | z_<i, pa), both normal; h ← block(h + project(z_i); pa).

    Args:
        width, kernel: of the features h.
        z_dim: channels of z_i.
        embedding: width of the parents' embedding.
        learned: p is learned (a mediator), starting at N(0, 1) (Child 2021, §3.1); otherwise it is N(0, 1).
    """

    def __init__(self, width: int, kernel: int, z_dim: int, embedding: int, learned: bool = False) -> None:
        super().__init__()
        self.posterior_in = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.posterior_parents = nn.Linear(embedding, width)
        self.posterior_out = nn.Conv2d(width, 2 * z_dim, 1)
        self.project = nn.Conv2d(z_dim, width, 1)
        self.block = ResidualBlock(width, kernel, embedding)
        self.learned = learned
        if learned:
            self.prior_in = nn.Conv2d(width, width, kernel, padding=kernel // 2)
            self.prior_parents = nn.Linear(embedding, width)
            self.prior_out = nn.Conv2d(width, 2 * z_dim, 1)
            nn.init.zeros_(self.prior_out.weight)
            nn.init.zeros_(self.prior_out.bias)

    def posterior(self, h: Tensor, activation: Tensor, embedding: Tensor) -> Normal:
        """q, with parameters ``(B, z_dim, r, r)``."""
        inner = self.posterior_in(F.silu(h + activation)) + self.posterior_parents(embedding)[:, :, None, None]
        return _normal(self.posterior_out(F.silu(inner)))

    def prior(self, h: Tensor, embedding: Tensor) -> Normal:
        """p, with parameters ``(B, z_dim, r, r)``, or single numbers where it is N(0, 1)."""
        if not self.learned:
            zero = torch.zeros((), device=h.device)
            return Normal(zero, zero)
        inner = self.prior_in(F.silu(h)) + self.prior_parents(embedding)[:, :, None, None]
        return _normal(self.prior_out(F.silu(inner)))

    def forward(self, h: Tensor, z: Tensor, embedding: Tensor) -> Tensor:
        return self.block(h + self.project(z), embedding)


def kernel_size(resolution: int) -> int:
    return 3 if resolution > 2 else 1


def _normal(parameters: Tensor) -> Normal:
    loc, log_scale = parameters.float().chunk(2, 1)
    return Normal(loc, soft_bound(log_scale, -6.0, 1.0))

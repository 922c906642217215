"""Pixel likelihoods p(x | z, pa): how an image's pixels scatter about what latents and parents predict."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_BIN = 1 / 255  # half of the width of one of 256 grey levels on [-1, 1]
MIN_LOG_SCALE = -9.0


class DiscretizedGaussian:
    """p(x) = Φ((x + 1/255 − μ)/σ) − Φ((x − 1/255 − μ)/σ) for the 256 grey levels of [-1, 1]; edge bins take the tails.

    Args:
        loc, log_scale: ``(B, C, H, W)`` on the [-1, 1] scale of pixels; ``log_scale`` is clamped at −9.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.loc = loc
        self.log_scale = log_scale.clamp(min=MIN_LOG_SCALE)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log mass of grey levels ``x`` in [-1, 1], elementwise, in nats.

        Where the bin's mass underflows in float32, the mid-point rule (density times width) continues it smoothly, so
        that a wild prediction still has a gradient.
        """
        inverse = torch.exp(-self.log_scale)
        centre = x - self.loc
        upper = torch.where(x > 1 - HALF_BIN, torch.full_like(x, 20.0), (centre + HALF_BIN) * inverse)
        lower = torch.where(x < -1 + HALF_BIN, torch.full_like(x, -20.0), (centre - HALF_BIN) * inverse)
        # Φ(b) − Φ(a) cancels in the upper tail: mirror it to the lower one.
        flip = lower > 0
        low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        z = centre * inverse
        mid_point = -_half_square(z) - self.log_scale + math.log(2 * HALF_BIN / math.sqrt(2 * math.pi))
        return torch.where(mass > 1e-6, torch.log(mass.clamp(min=1e-6)), mid_point.clamp(max=math.log(1e-6)))

    def standardize(self, x: Tensor) -> Tensor:
        """The residual ``u = (x − μ)/σ``: the pixels' own exogenous noise.

        Black and white are censored: all that is known of a black pixel is that ``μ + σu`` lies at or below −1. Where μ
        does already, the most probable noise is 0. (Taking (−1 − μ)/σ instead, hundreds where σ is small, would paint
        the background white under the next intervention: an error to the truth of 15 grey levels instead of 2.)
        """
        distance = x - self.loc
        distance = torch.where(x <= -1 + HALF_BIN, distance.clamp(max=0), distance)
        distance = torch.where(x >= 1 - HALF_BIN, distance.clamp(min=0), distance)
        return distance * torch.exp(-self.log_scale)

    def place(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """``μ + temperature·σ·u``, inside [-1, 1]: the inverse of :meth:`standardize` at temperature 1."""
        return (self.loc + temperature * torch.exp(self.log_scale) * u).clamp(-1, 1)


def _half_square(z: Tensor, bend: float = 20.0) -> Tensor:
    """z²/2, whose gradient stops growing at |z| = ``bend``: one wild pixel must not outweigh a batch."""
    magnitude = z.abs()
    linear_beyond = torch.where(magnitude < bend, 0.5 * z * z, bend * magnitude - 0.5 * bend * bend)
    return linear_beyond + (0.5 * z * z - linear_beyond).detach()


def kl_to_standard_normal(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(loc, e^{2·log_scale}) ‖ N(0, 1)), elementwise, in nats."""
    return 0.5 * (loc * loc + torch.exp(2 * log_scale) - 1) - log_scale


def soft_bound(x: Tensor, low: float, high: float) -> Tensor:
    """Identity on [low, high], nearly flat beyond (slope 1/100), so that nothing gets stuck without a gradient."""
    inside = x.clamp(low, high)
    return inside + 0.01 * (x - inside)

"""Pixel likelihoods p(x | z, pa): how an image's pixels scatter about what latents and parents predict.

Every family has its file or class and knows independent pixels only; :class:`ChannelAutoregression` lets the channels of
colour images depend on one another, for all families alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mechanisms.image.normal_mass import log_mass

HALF_BIN = 1 / 255  # half of the width of one of 256 grey levels on [-1, 1]
MIN_LOG_SCALE = -9.0


class PixelLikelihood(ABC):
    """p(x | z, pa) of a batch's pixels, and the exogenous noise u that makes x of it.

    Laws: the masses of all grey levels sum to one; :meth:`place` inverts :meth:`standardize` at temperature 1, black and
    white included, and rises with u; u has the same law whatever the parameters. Everything is differentiable in the
    parameters and in x or u; where a pixel is black or white, ``place`` has no gradient.

    Attributes:
        loc: the mean, before values are confined to [-1, 1], ``(B, C, H, W)``.
    """

    loc: Tensor

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log mass of grey levels ``x (B, C, H, W)`` in [-1, 1], elementwise, in nats."""

    @abstractmethod
    def standardize(self, x: Tensor) -> Tensor:
        """The pixels' own exogenous noise u, ``(B, C, H, W)``.

        Black and white are censored: all that is known of a black pixel is that its value before confinement lies at or
        below −1. Of all noise that puts it there, the most probable is taken: 0 where the median lies there already.
        """

    @abstractmethod
    def place(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """The pixels in [-1, 1] that the noise ``temperature·u`` makes; at 0 their medians."""


class IndependentPixels(PixelLikelihood):
    """A likelihood whose pixels and channels are independent given latents and parents."""

    @abstractmethod
    def shifted(self, by: Tensor) -> IndependentPixels:
        """The same with every pixel's location moved ``by (B, C, H, W)``."""

    @abstractmethod
    def channel(self, index: int) -> IndependentPixels:
        """One channel of it, ``(B, 1, H, W)``."""


class DiscretizedGaussian(IndependentPixels):
    """p(x) = Φ((x + 1/255 − μ)/σ) − Φ((x − 1/255 − μ)/σ) for the 256 grey levels of [-1, 1]; edge bins take the tails.

    The noise is u = (x − μ)/σ, standard normal.

    Args:
        loc, log_scale: ``(B, C, H, W)`` on the [-1, 1] scale of pixels; ``log_scale`` is clamped at −9.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.loc = loc
        self.log_scale = log_scale.clamp(min=MIN_LOG_SCALE)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log mass of grey levels ``x`` in [-1, 1], elementwise, in nats: exact however far off or narrow the prediction is."""
        centre = x - self.loc
        centre = centre.to(torch.promote_types(centre.dtype, torch.float32))  # a grey level is finer than half precision
        log_scale = self.log_scale.to(centre.dtype).expand_as(centre)
        return log_mass(centre, log_scale, HALF_BIN, x < -1 + HALF_BIN, x > 1 - HALF_BIN)

    def standardize(self, x: Tensor) -> Tensor:
        """The residual ``u = (x − μ)/σ``; of black and white pixels as near to 0 as they allow.

        Taking (−1 − μ)/σ of a black pixel where μ lies below −1, hundreds where σ is small, would paint the background
        white under the next intervention: an error to the truth of 15 grey levels instead of 2.
        """
        return censored(x, x - self.loc) * torch.exp(-self.log_scale)

    def place(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """``μ + temperature·σ·u``, inside [-1, 1]."""
        return (self.loc + temperature * torch.exp(self.log_scale) * u).clamp(-1, 1)

    def shifted(self, by: Tensor) -> DiscretizedGaussian:
        return DiscretizedGaussian(self.loc + by, self.log_scale)

    def channel(self, index: int) -> DiscretizedGaussian:
        return DiscretizedGaussian(self.loc[:, index : index + 1], self.log_scale[:, index : index + 1])


class ChannelAutoregression(PixelLikelihood):
    """p(x) = Π_c p_c(x_c | x_<c): channel c moves by Σ_{d<c} k_cd·(x_d − m_d), with m_d = μ_d confined to [-1, 1].

    Salimans et al. 2017, *PixelCNN++*, §2.2, move it by k_cd·x_d. Here earlier channels are centred, for three reasons.
    Where pixels are as predicted, channels are what the read-out says, so that parents that act linearly on μ go on to
    do so; k·x_d would be a product of two functions of the parents. Only what latents and parents leave unexplained is
    handed on. And at first order k and μ do not disturb each other in training. m_d is confined as pixels are: a black
    pixel that was predicted blacker than black hands nothing on.

    Args:
        independent: of channels whose earlier ones are as predicted.
        coefficients: k, ``(B, C(C−1)/2, H, W)``, in the order k_10, k_20, k_21, …
    """

    def __init__(self, independent: IndependentPixels, coefficients: Tensor) -> None:
        self.independent, self.coefficients = independent, coefficients
        self.loc = independent.loc

    def log_prob(self, x: Tensor) -> Tensor:
        return self._given(x).log_prob(x)

    def standardize(self, x: Tensor) -> Tensor:
        return self._given(x).standardize(x)

    def place(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """The pixels that ``temperature·u`` makes, channel by channel, each given those already placed."""
        expected, placed = self.loc.clamp(-1, 1), u[:, :0]
        for c in range(u.shape[1]):
            one = self.independent.channel(c).shifted(self._shift(c, placed - expected[:, :c]))
            placed = torch.cat([placed, one.place(u[:, c : c + 1], temperature)], 1)
        return placed

    def _given(self, x: Tensor) -> IndependentPixels:
        """Every channel where the earlier ones are those of ``x``."""
        surprise = x - self.loc.clamp(-1, 1)
        return self.independent.shifted(torch.cat([self._shift(c, surprise) for c in range(x.shape[1])], 1))

    def _shift(self, channel: int, surprise: Tensor) -> Tensor:
        """How far ``channel`` moves, ``(B, 1, H, W)``, where (at least) the earlier channels differ by ``surprise``."""
        first = channel * (channel - 1) // 2
        return (self.coefficients[:, first : first + channel] * surprise[:, :channel]).sum(1, keepdim=True)


def censored(x: Tensor, distance: Tensor) -> Tensor:
    """``distance`` of pixels ``x`` from their median, in any unit, as near to 0 as a black or white pixel allows."""
    distance = torch.where(x <= -1 + HALF_BIN, distance.clamp(max=0), distance)
    return torch.where(x >= 1 - HALF_BIN, distance.clamp(min=0), distance)


def kl_to_standard_normal(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(loc, e^{2·log_scale}) ‖ N(0, 1)), elementwise, in nats."""
    return 0.5 * (loc * loc + torch.exp(2 * log_scale) - 1) - log_scale


def soft_bound(x: Tensor, low: float, high: float) -> Tensor:
    """Identity on [low, high], nearly flat beyond (slope 1/100), so that nothing gets stuck without a gradient."""
    inside = x.clamp(low, high)
    return inside + 0.01 * (x - inside)

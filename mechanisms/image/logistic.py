"""The discretised mixture of logistics: a pixel likelihood that may have several modes (Salimans et al. 2017, *PixelCNN++*)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mechanisms.image.likelihood import HALF_BIN, MIN_LOG_SCALE, IndependentPixels, censored

BACKGROUND = 1e-3  # share of the broad logistic …
BREADTH = 0.5  # … and its scale
FLATTEST = 0.1  # slope of the noise in x below which the gradient of a placed pixel grows no more
BEYOND = 1e30  # where the edge bins end


class LogisticMixture(IndependentPixels):
    """p(x) = F(x + 1/255) − F(x − 1/255) for the 256 grey levels of [-1, 1]; edge bins take the tails.

    F(x) = (1 − ε)·Σ_k w_k·S((x − μ_k)/s_k) + ε·S(x/0.5), with S the logistic sigmoid. The exogenous noise is
    u = logit F(x), standard logistic, and x = F⁻¹(S(u)): the monotone map, so that an intervention moves a pixel from its
    rank among what was possible to the same rank among what is then possible.

    The share ε = 1/1000 of one broad logistic costs 0.001 nats a subpixel and does three things. F stays invertible in
    float32; between two narrow modes a mixture is flat, and all pixels there would have the same noise. No tail of F
    and no mass on [-1, 1] underflows, so that sums of plain sigmoids are exact (logarithms of each component would take
    several times as long). And noise is bounded: a pixel that nothing predicted is an outlier of |u| ≤ 9.1, not of
    |x − μ|/s in the hundreds, which an intervention that changes s would throw anywhere.

    Args:
        logits, locs, log_scales: ``(K, B, C, H, W)``: components first, because sums over the slowest dimension are fast.
            ``w`` is the softmax of the logits; ``log_scales`` are clamped at −9.
    """

    def __init__(self, logits: Tensor, locs: Tensor, log_scales: Tensor) -> None:
        self.logits, self.locs, self.log_scales = logits, locs, log_scales.clamp(min=MIN_LOG_SCALE)

    @property
    def loc(self) -> Tensor:
        """Mean of all components but the broad one: linear in their locations, ``(B, C, H, W)``."""
        return (torch.softmax(self.logits, 0) * self.locs).sum(0)

    def shifted(self, by: Tensor) -> LogisticMixture:
        """The same with every component but the broad one moved ``by (B, C, H, W)``."""
        return LogisticMixture(self.logits, self.locs + by, self.log_scales)

    def channel(self, index: int) -> LogisticMixture:
        one = slice(index, index + 1)
        return LogisticMixture(self.logits[:, :, one], self.locs[:, :, one], self.log_scales[:, :, one])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log mass of grey levels ``x`` in [-1, 1], elementwise, in nats; it never falls below −14."""
        upper = torch.where(x > 1 - HALF_BIN, BEYOND, x + HALF_BIN)
        lower = torch.where(x < -1 + HALF_BIN, -BEYOND, x - HALF_BIN)
        masses = _mass(lower, upper, self.locs, torch.exp(-self.log_scales))
        narrow = (torch.softmax(self.logits, 0) * masses).sum(0)
        return torch.log((1 - BACKGROUND) * narrow + BACKGROUND * _mass(lower, upper, 0.0, 1 / BREADTH))

    def standardize(self, x: Tensor) -> Tensor:
        """``u = logit F(x)``; of black and white pixels as near to 0 as they allow."""
        return censored(x, _noise(x, *self._components()))

    def place(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """``F⁻¹(S(temperature·u))``, inside [-1, 1].

        Bisection without gradient, then one step of Newton's method with it: at the root F(x; θ) = S(u) its derivatives
        are those of the implicit function x(θ, u), so that no iteration need be remembered. In the gaps between modes,
        where x leaps as u passes, its gradient is held to that of a slope du/dx of 1/10.
        """
        target = (temperature * u).flatten()
        components = [c.flatten(1) for c in self._components()]
        with torch.no_grad():
            black, white = _above(-1.0, target, *components), ~_above(1.0, target, *components)
            edges = white.to(u.dtype) - black.to(u.dtype) + 0 * target  # what is not finite stays so: weights that have diverged show
            inner = (~(black | white)).nonzero()[:, 0]  # few pixels of most images: only these need a search
        target, components = target[inner], [c[:, inner] for c in components]
        with torch.no_grad():
            root, error = _bisect(target, *components)
            slope = _slope(root, *components)
        miss = target - _noise(root, *components)
        newton = root + (miss.detach() / slope).clamp(-error, error) + (miss - miss.detach()) / slope.clamp(min=FLATTEST)
        return edges.index_copy(0, inner, newton.clamp(-1, 1)).reshape(u.shape)

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, locations and inverse scales, ``(K, B, C, H, W)``."""
        return (1 - BACKGROUND) * torch.softmax(self.logits, 0), self.locs, torch.exp(-self.log_scales)


def _mass(lower: Tensor, upper: Tensor, loc: Tensor | float, inverse: Tensor | float) -> Tensor:
    """S(b) − S(a) of the standardised ends of a bin, as S(b)·S(−a)·(1 − e^{a−b}): no difference of near numbers."""
    width = -torch.expm1((lower - upper) * inverse)
    return torch.sigmoid((upper - loc) * inverse) * torch.sigmoid((loc - lower) * inverse) * width


def _tails(x: Tensor, weights: Tensor, locs: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """F(x) and 1 − F(x), each by itself: neither is one minus the other in float32."""
    z = (x - locs) * inverse
    below = (weights * torch.sigmoid(z)).sum(0) + BACKGROUND * torch.sigmoid(x / BREADTH)
    above = (weights * torch.sigmoid(-z)).sum(0) + BACKGROUND * torch.sigmoid(-x / BREADTH)
    return below, above


def _noise(x: Tensor, weights: Tensor, locs: Tensor, inverse: Tensor) -> Tensor:
    """logit F(x)."""
    below, above = _tails(x, weights, locs, inverse)
    return torch.log(below) - torch.log(above)


def _slope(x: Tensor, weights: Tensor, locs: Tensor, inverse: Tensor) -> Tensor:
    """du/dx of :func:`_noise`: f/(F·(1 − F)) with f the density."""
    below, above = _tails(x, weights, locs, inverse)
    z, broad = (x - locs) * inverse, x / BREADTH
    density = (weights * inverse * torch.sigmoid(z) * torch.sigmoid(-z)).sum(0)
    return (density + BACKGROUND / BREADTH * torch.sigmoid(broad) * torch.sigmoid(-broad)) / (below * above)


def _above(x: Tensor | float, target: Tensor, weights: Tensor, locs: Tensor, inverse: Tensor) -> Tensor:
    """Whether F(x) > S(target), by whichever tail of the two is the smaller and therefore exact."""
    side = torch.where(target > 0, -1.0, 1.0).to(target.dtype)
    tail = torch.sub(x, locs).mul_(inverse).mul_(side).sigmoid_().mul_(weights).sum(0)
    tail += BACKGROUND * torch.sigmoid(side * x / BREADTH)
    return (tail > torch.sigmoid(side * target)) == (side > 0)


def _bisect(target: Tensor, weights: Tensor, locs: Tensor, inverse: Tensor) -> tuple[Tensor, float]:
    """x in [-1, 1] with F(x) = S(target), and how far off it may be: a third of the digits is left to Newton's step."""
    low, width = torch.full_like(target, -1.0), 2.0
    for _ in range(round(-2 / 3 * math.log2(torch.finfo(target.dtype).eps)) + 1):
        width /= 2
        middle = low + width
        low = torch.where(_above(middle, target, weights, locs, inverse), low, middle)
    return low + width / 2, width

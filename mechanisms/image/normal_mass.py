"""The logarithm of a normal distribution's mass in a bin, exact in every tail, with its derivatives in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TAIL = -10.0  # bins that end below it go by Mills' ratio: Φ itself underflows in float32 at −13
_BEND = 20.0  # standard deviations beyond which gradients grow no more: one wild pixel must not outweigh a batch
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


def log_mass(centre: Tensor, log_scale: Tensor, half: float, black: Tensor, white: Tensor) -> Tensor:
    """log(Φ((c + w)/σ) − Φ((c − w)/σ)), elementwise, float32 or float64; of edge bins one end is infinite.

    With z the centre in units of σ, mirrored to the lower tail, and h = w/σ, there are three forms, each where it is
    exact to some units of the last digit:

    1. Bins much narrower than φ's curvature: ``2h·φ(z)·(1 + h²(z² − 1)/6)``; differences of Φ cancel there.
    2. Else, up to ten standard deviations off: the difference of Φ.
    3. Beyond: ``φ(b)·(R(−b) − R(−a)·e^{2hz})``, with a, b = z ∓ h and R = Φ(−·)/φ, Mills' ratio. No exponential underflows,
       so the logarithm goes on to −z²/2 for any z.

    Differentiable once. The derivatives ``(φ(b) ∓ φ(a))/mass`` are formed without a difference of near numbers, too, and
    are exact up to ``|∂/∂z| = 20``. Beyond, the whole gradient is scaled down to that: with the exact one, an update of
    an early training is that of its one wildest pixel (of 100 updates 5 had to be skipped, and the loss leapt to 1e10).

    Args:
        centre: c, of the bin, relative to the mean.
        log_scale: log σ.
        half: w, half of the bin's width.
        black, white: booleans: the bin takes the lower tail, the upper tail.
    """
    return _LogMass.apply(centre, log_scale, half, black, white)


class _LogMass(torch.autograd.Function):
    @staticmethod
    def forward(context, centre: Tensor, log_scale: Tensor, half: float, black: Tensor, white: Tensor) -> Tensor:
        edge, inverse = black | white, torch.exp(-log_scale)
        # Φ(b) − Φ(a) cancels in the upper tail: mirror it to the lower one
        towards = torch.where(edge, black.to(centre.dtype) - white.to(centre.dtype), -torch.sign(centre)).mul_(inverse)
        z, h = towards * centre, half * inverse
        high, slant = z + h, (2 * h * z).masked_fill_(edge, -math.inf)  # slant: log φ(a) − log φ(b)
        low, squares = (z - h).masked_fill_(edge, -math.inf), z.square()
        narrow = (h.square() * squares.clamp(min=1) < 8 * torch.finfo(z.dtype).eps ** 0.5) & ~edge
        far = (high < _TAIL) & ~narrow
        # mass = e^base · ratio, and φ(b) = e^base · upper
        log_density = torch.where(narrow, squares, high.square()).mul_(-0.5).sub_(_LOG_ROOT)
        tails = _mills(-high).sub_(_mills(-low).mul_(torch.exp(slant)))
        ratio = torch.where(far, tails, _cdf(high).sub_(_cdf(low)))
        ratio = torch.where(narrow, squares.sub_(1).mul_(h.square()).div_(6).add_(1).mul_(2 * h), ratio)
        upper = torch.where(narrow, (z + 0.5 * h).mul_(-h), log_density.masked_fill(far, 0.0)).exp_()
        context.save_for_backward(upper.div_(ratio), slant, towards, z, h)
        return ratio.log_().add_(log_density.masked_fill_(~(narrow | far), 0.0))

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rate, slant, towards, z, h = context.saved_tensors
        share = torch.expm1(slant).neg_()  # 1 − φ(a)/φ(b)
        rate = torch.minimum(rate, _BEND / share).mul_(gradient)
        by_z = rate * share
        by_h = (2 - share).mul_(rate)
        return by_z * towards, (by_z * z).add_(by_h.mul_(h)).neg_(), None, None, None


def _mills(y: Tensor) -> Tensor:
    """R(y) = Φ(−y)/φ(y) of y ≥ 10, by Laplace's continued fraction ``1/(y + 1/(y + 2/(y + …)))``; meaningless below."""
    y = y.clamp(min=-_TAIL)
    fraction = y
    for k in range(4 if y.dtype == torch.float32 else 12, 0, -1):  # off by 1e-8, 1e-16
        fraction = k / fraction + y
    return 1 / fraction


def _cdf(x: Tensor) -> Tensor:
    """Φ(x), to the last digit in the lower tail, where ``torch.special.ndtr`` forms 1 − 1."""
    return torch.erfc(x * -math.sqrt(0.5)).mul_(0.5)

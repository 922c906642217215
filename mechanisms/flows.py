"""Continuous attributes: a conditional flow from standard normal noise to the physical value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import Normal, TransformedDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform
from torch.nn import functional as F
from zuko.transforms import MonotonicRQSTransform

from datasets import SchemaError, Variable
from mechanisms.base import AttributeMechanism, Conditioner


class SupportTransform(Transform):
    """x = low + exp(y), or low + (high − low)·σ(y), or y, where y = location + scale·z: coordinate → physical value.

    The map itself is the variable's (:meth:`datasets.Variable.constrain`); added here are its Jacobian and its support.
    """

    domain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, variable: Variable) -> None:
        super().__init__()
        self.variable = variable

    @property
    def codomain(self) -> constraints.Constraint:
        if self.variable.kind == "positive":
            return constraints.greater_than(self.variable.low)
        if self.variable.kind == "interval":
            return constraints.interval(self.variable.low, self.variable.high)
        return constraints.real

    def _call(self, z: Tensor) -> Tensor:
        return self.variable.constrain(z)

    def _inverse(self, x: Tensor) -> Tensor:
        return self.variable.unconstrain(x)

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        """log |dx/dz|, from z and not from x: near an edge x has lost the digits that z still has."""
        statistics = self.variable.statistics
        y = z * statistics.scale + statistics.location
        slope = torch.full_like(z, math.log(statistics.scale))
        if self.variable.kind == "positive":
            return slope + y
        if self.variable.kind == "interval":
            return slope + math.log(self.variable.high - self.variable.low) - F.softplus(y) - F.softplus(-y)
        return slope


class Flow(AttributeMechanism):
    """x = support(μ(c) + exp(s(c))·spline⁻¹(u; c)), u ~ N(0, 1).

    The spline is monotonic rational-quadratic (Durkan et al., "Neural spline flows", 2019, eq. 4) on [−bound, bound]
    and the identity beyond, so noise keeps normal tails; the affine map comes last, so that μ, which has a direct
    linear path from the parents, moves the whole distribution when parents leave their training range. The spline is
    evaluated in closed form for densities and abduction and solved (one quadratic) for prediction.

    Args:
        variable: a continuous variable, with statistics.
        context_width: ``D``, the width of the encoded parents.
        bins: of the spline.
        hidden: widths of the network that reads the parents.
        bound: where the spline ends, in standard deviations of the noise.

    >>> dose = Flow(Variable("dose", "positive"), context_width=1)
    >>> parents, x = torch.tensor([[0.5], [-1.0]]), torch.tensor([1.5, 0.2])
    >>> torch.allclose(dose.predict(dose.abduct(x, parents), parents), x)
    True

    Raises:
        SchemaError: for a discrete variable.
    """

    def __init__(self, variable: Variable, context_width: int, bins: int = 8, hidden: Sequence[int] = (32, 32),
                 bound: float = 4.0) -> None:
        super().__init__(variable)
        if not variable.continuous:
            raise SchemaError(f"a flow needs a continuous variable; {variable.name!r} is {variable.kind}")
        self.sizes = (1, 1, bins, bins, bins - 1)
        self.bound = bound
        # All zero is the identity spline, hence the normal (log-normal, logit-normal) of the training statistics.
        self.conditioner = Conditioner(context_width, torch.zeros(sum(self.sizes)), linear=1, hidden=hidden)

    def noise_distribution(self) -> Normal:
        zero = torch.zeros((), device=self.device)
        return Normal(zero, torch.ones_like(zero))

    def draw_noise(self, shape: torch.Size | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else self.device
        return torch.randn(*shape, generator=generator, device=device).to(self.device)

    def transforms(self, context: Tensor) -> list[Transform]:
        """Noise → physical value, one transform after the other, all of batch shape ``context.shape[:-1]``."""
        loc, log_scale, *spline = self.conditioner(context).split(self.sizes, dim=-1)
        return [MonotonicRQSTransform(*spline, bound=self.bound).inv,
                AffineTransform(loc.squeeze(-1), log_scale.squeeze(-1).exp()),
                SupportTransform(self.variable)]

    def distribution(self, context: Tensor) -> TransformedDistribution:
        """p(x | c), ``batch_shape = context.shape[:-1]``, supported where the variable is."""
        noise = self.noise_distribution().expand(context.shape[:-1])
        return TransformedDistribution(noise, self.transforms(context))

    def abduct(self, x: Tensor, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """u = f⁻¹(x; c), ``(*B)``: a value and its noise determine each other, so nothing is drawn."""
        for transform in reversed(self.transforms(context)):
            x = transform.inv(x)
        return x

    def predict(self, noise: Tensor, context: Tensor) -> Tensor:
        """x = f(u; c), ``(*B)``, in physical units and inside the support."""
        for transform in self.transforms(context):
            noise = transform(noise)
        return noise

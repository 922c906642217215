"""p(x | pa) for one attribute: the verbs that every mechanism has, and the network that reads the parents.

A mechanism is a pair of an exogenous noise ``u ~ p(u)`` that no parent can see and a function ``x = f(u; pa)``. Every
verb follows from that pair: abduction draws from ``p(u | x, pa)``, prediction applies ``f``, sampling composes a draw
of ``u`` with ``f`` (Pearl, "Causality", 2009, §7.1; Pawlowski et al., "Deep structural causal models", 2020, §3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn import functional as F

from datasets import Variable


def term_of(name: str) -> str:
    """What a training logs of one attribute is called so, and not as the attribute, which may be called ``loss``."""
    return f"nats/{name}"


class AttributeMechanism(nn.Module):
    """x = f(u; c), with x in physical units (class indices where discrete) and c the encoded parents.

    Shapes: ``x`` is ``(*B)``, ``context`` is ``(*B, D)`` from :func:`datasets.encode_parents` (``D`` may be 0), and
    ``noise`` is ``(*B, *E)`` with ``E`` the event shape of :meth:`noise_distribution`. Batch shapes broadcast.

    Args:
        variable: the effect, with the statistics of its training split.
    """

    def __init__(self, variable: Variable) -> None:
        super().__init__()
        self.variable = variable

    # ------------------------------------------------------------------------------------------------ to provide
    def noise_distribution(self) -> Distribution:
        """p(u), with an empty batch shape."""
        raise NotImplementedError

    def draw_noise(self, shape: torch.Size | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """u ~ p(u) of batch shape ``shape``; unlike Pyro's sampling it takes a generator, on any device.

        Here and in :meth:`abduct` and :meth:`sample`, no generator means torch's global stream: two mechanisms must not draw
        alike. A model of several, :class:`pgm.AttributeSCM`, hands one seeded generator to all.
        """
        raise NotImplementedError

    def distribution(self, context: Tensor) -> Distribution:
        """p(x | c) as a Pyro distribution of batch shape ``context.shape[:-1]`` and event shape ``()``."""
        raise NotImplementedError

    def abduct(self, x: Tensor, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """u ~ p(u | x, c), such that ``predict(u, c)`` is ``x``."""
        raise NotImplementedError

    def predict(self, noise: Tensor, context: Tensor) -> Tensor:
        """x = f(u; c)."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ derived
    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """log p(x | c) in nats, ``(*B)``; a density with respect to the physical value where that is continuous."""
        return self.distribution(context).log_prob(x)

    def sample(self, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ~ p(x | c): :meth:`predict` of fresh noise, ``(*B)``."""
        return self.predict(self.draw_noise(context.shape[:-1], generator), context)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Conditioner(nn.Module):
    """θ(c) = θ₀ + [A c, 0] + MLP(c): the parameters of a distribution, from the encoded parents.

    The first ``linear`` parameters have a direct linear path. Beyond the range of the training data the tanh network
    levels off, so those parameters go on linearly and all others stay at what was last learnt.

    Args:
        width: ``D``, the width of the context. With none, θ₀ is all there is.
        initial: θ₀, ``(P,)``.
        linear: how many of the parameters have the linear path.
        hidden: widths of the hidden layers.

    Shapes: ``(*B, D) → (*B, P)``.
    """

    def __init__(self, width: int, initial: Tensor, linear: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.initial = nn.Parameter(initial.clone())
        if not width:
            self.skip = self.network = None
            return
        self.skip = nn.Linear(width, linear, bias=False)
        nn.init.zeros_(self.skip.weight)
        layers, last = [], width
        for size in hidden:
            layers += [nn.Linear(last, size), nn.Tanh()]
            last = size
        output = nn.Linear(last, len(initial), bias=False)
        nn.init.normal_(output.weight, std=1e-2)  # close to θ₀, yet not zero: gradients reach the layers below
        self.network = nn.Sequential(*layers, output)

    def forward(self, context: Tensor) -> Tensor:
        if self.network is None:
            return self.initial.expand(*context.shape[:-1], -1)
        # These networks cost next to nothing, and abduction needs every digit: never in half precision.
        with torch.autocast(context.device.type, enabled=False):
            context = context.to(self.initial.dtype)
            skip = self.skip(context)
            return self.initial + self.network(context) + F.pad(skip, (0, len(self.initial) - skip.shape[-1]))

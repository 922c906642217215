"""Discrete attributes: the Gumbel-max mechanism, whose noise can be abducted exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Categorical, Gumbel, Independent
from torch import Tensor

from datasets import SchemaError, Variable
from mechanisms.base import AttributeMechanism, Conditioner

_MARGIN = 1e-5  # relative; wins over rounding when a runner-up comes within float32's resolution of the maximum


class GumbelMax(AttributeMechanism):
    """x = argmax_k (log p_k(c) + u_k), u_k ~ Gumbel(0, 1): a categorical p(x | c) with counterfactuals.

    Of all mechanisms with this p(x | c), the Gumbel-max one is counterfactually stable: the class changes only if the
    intervention raises another class's odds against the observed one (Oberst & Sontag, "Counterfactual off-policy
    evaluation with Gumbel-max structural causal models", 2019, §3). Binary variables have two classes.

    Args:
        variable: a discrete variable; its class counts, if known, are the first logits.
        context_width: ``D``, the width of the encoded parents; without parents the logits are free parameters.
        hidden: widths of the network that reads the parents.

    >>> sex = GumbelMax(Variable("sex", "binary"), context_width=0)
    >>> noise = sex.abduct(torch.tensor([0, 1, 1]), torch.zeros(3, 0), torch.Generator().manual_seed(0))
    >>> sex.predict(noise, torch.zeros(3, 0))
    tensor([0, 1, 1])

    Raises:
        SchemaError: for a continuous variable.
    """

    def __init__(self, variable: Variable, context_width: int, hidden: Sequence[int] = (32, 32)) -> None:
        super().__init__(variable)
        if not variable.discrete:
            raise SchemaError(f"Gumbel-max needs a discrete variable; {variable.name!r} is {variable.kind}")
        counts = torch.tensor(variable.statistics.counts or (1,) * variable.cardinality, dtype=torch.float32)
        initial = counts.clamp_min(0.5).log()  # half an observation keeps an unseen class possible
        self.conditioner = Conditioner(context_width, initial - initial.mean(), linear=len(counts), hidden=hidden)

    def logits(self, context: Tensor) -> Tensor:
        """log p(x = k | c), normalised, ``(*B, K)``."""
        return self.conditioner(context).log_softmax(dim=-1)

    def noise_distribution(self) -> Independent:
        zeros = torch.zeros(self.variable.cardinality, device=self.device)
        return Gumbel(zeros, torch.ones_like(zeros)).to_event(1)

    def draw_noise(self, shape: torch.Size | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        return self._gumbel((*shape, self.variable.cardinality), generator)

    def distribution(self, context: Tensor) -> Categorical:
        return Categorical(logits=self.logits(context))

    def abduct(self, x: Tensor, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """u ~ p(u | x, c), ``(*B, K)``: exact posterior noise, by top-down sampling.

        The maximum of ``log p_k + u_k`` is Gumbel(0, 1) whichever class attains it; given the maximum ``m``, attained
        by ``x``, the others are Gumbel(log p_k) truncated at ``m``: ``−log(exp(−(log p_k + g_k)) + exp(−m))``
        (Maddison, Tarlow & Minka, "A* sampling", 2014, top-down construction; Oberst & Sontag, 2019, §3).
        """
        logits = self.logits(context)
        x, _ = torch.broadcast_tensors(x.long().unsqueeze(-1), logits[..., :1])
        maximum = self._gumbel(x.shape, generator)
        truncated = -torch.logaddexp(-(logits + self._gumbel(logits.shape, generator)), -maximum)
        # Truncated values lie below the maximum, but may round to it, here or when the logits are added back.
        gap = _MARGIN * (1 + maximum.abs() + logits.abs() + logits.gather(-1, x).abs())
        truncated = torch.minimum(truncated, maximum - gap)
        return truncated.scatter(-1, x, maximum) - logits

    def predict(self, noise: Tensor, context: Tensor) -> Tensor:
        """argmax_k (log p_k(c) + u_k), int64 ``(*B)``."""
        return (self.logits(context) + noise).argmax(dim=-1)

    def _gumbel(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """−log E, E ~ Exponential(1), ``shape``; keeps the upper tail that −log(−log U) cuts off in float32."""
        device = generator.device if generator is not None else self.device
        exponential = torch.empty(*shape, device=device).exponential_(generator=generator)
        return -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log().to(self.device)

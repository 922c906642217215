"""What a model says that it can do, so that an evaluation asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datasets.schema import Graph
from dscm.results import Counterfactual


@dataclass(frozen=True)
class Capabilities:
    """Which further methods a model has, and which further keywords its methods take.

    Attributes:
        abduct: ``abduct(observed, generator, draws, batch_size)``, whose result ``counterfactual`` and ``regenerate`` take as ``noise``:
            one encoder pass serves all questions.
        draws: ``counterfactual`` takes ``draws=K`` and then returns several answers.
        temperature: ``counterfactual`` and ``regenerate`` take ``temperature``, a scale of the pixel residual.
        effects: what ``counterfactual`` takes as ``effect``; where it is "total" alone, the keyword is never given.
        regenerate: ``regenerate(observed, generator, batch_size)``, the null intervention without a short cut.
        log_prob: ``log_prob(observed, generator)["image"]``, log p(image | parents) or a lower bound of it.
    """

    abduct: bool = False
    draws: bool = False
    temperature: bool = False
    effects: tuple[str, ...] = ("total",)
    regenerate: bool = False
    log_prob: bool = False


class Model(Protocol):
    """What is evaluated: a :class:`dscm.DSCM`, or anything that answers like one."""

    capabilities: Capabilities

    @property
    def graph(self) -> Graph: ...

    @property
    def device(self) -> torch.device: ...

    def counterfactual(self, observed: Mapping[str, Tensor], do: Mapping[str, Tensor], *, generator: torch.Generator | None = None,
                       batch_size: int = 256) -> Counterfactual:
        """What ``observed`` would have been under ``do``; takes besides what its :class:`Capabilities` say."""
        ...

"""Counterfactual training: an image mechanism learns from what frozen predictors read off its own counterfactuals.

    min_θ  −Σ_k log q(pa*_k | x*(θ))    subject to    F(θ) ≤ c

(De Sousa Ribeiro et al. 2023, *High fidelity image counterfactuals with probabilistic causal models*, §3.3.) In each
batch one parent of the image is permuted among the rows, the other attributes follow by their own causal model, and x*
is abducted and predicted with gradients. F is the free energy of the observed images and c the pretrained mechanism's
*own* free energy: a constant of another model would either bind at once or never.

The constraint is held by a damped Lagrangian (Platt & Barr 1987, *Constrained differential optimization*). Its weight
max(0, λ + damping·v), v the violation, is that of the augmented Lagrangian of an inequality (Rockafellar 1973). Without
the maximum it would turn negative while the constraint holds by a margin, and training would then *raise* F up to c.

One inference serves both: the latents drawn for F are the noise that x* is made of. They are drawn rather than set to
their mean, because the bound needs a draw.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from datasets.base import Split
from datasets.schema import Graph, SchemaError
from datasets.words import listed
from dscm.checks import check_prediction
from dscm.finetuning.config import FinetuneConfig
from mechanisms.anticausal.model import Predictors
from mechanisms.image.base import ImageMechanism
from mechanisms.training.config import TrainingConfig
from mechanisms.training.devices import make_accelerator, prepared
from mechanisms.training.loop import evaluate, global_batch
from mechanisms.training.noise import Noise
from pgm.scm import AttributeSCM

TOLERANCE = 0.005  # nats per dimension: how far validation's free energy may exceed its bound and still be said to hold
_MEMORY = 0.95  # of the running violation: images differ in free energy far more than a batch of them can average out
_WORST = 1e6  # above any mean of −log q: of weights that break the constraint, those that break it least are the best


class Multiplier(nn.Module):
    """λ ≥ 0 of one constraint v ≤ 0, by projected gradient ascent: λ ← max(0, λ + rate·v).

    λ and the running mean of v are buffers: like a batch norm's statistics, they are part of the model's state and are
    updated in its forward pass.
    """

    def __init__(self, rate: float, damping: float) -> None:
        super().__init__()
        self.rate, self.damping = rate, damping
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("violation", torch.zeros(()))

    def weight(self) -> Tensor:
        """max(0, λ + damping·v): what the constrained quantity weighs in the loss, from all batches before this one."""
        return (self.value + self.damping * self.violation).clamp(min=0)

    @torch.no_grad()
    def ascend(self, violation: Tensor, memory: float = _MEMORY) -> None:
        """Take one batch's violation in; one that is not finite says nothing."""
        if torch.isfinite(violation):
            self.violation.lerp_(violation, 1 - memory)
            self.value.add_(self.rate * self.violation).clamp_(min=0)


class CounterfactualTraining(nn.Module):
    """The objective of counterfactual training, for :func:`mechanisms.training.loop.fit`.

    Parameters and state are those of the image mechanism and the multiplier alone. Attributes and predictors are frozen,
    stay in eval mode, and are in no checkpoint.

    Args:
        image: what is trained, in place.
        attributes, predictors: of the same graph.
        config: see :class:`dscm.finetuning.config.FinetuneConfig`.

    Attributes:
        bounds: of the free energy, in nats per dimension: on training and on validation images.

    Raises:
        UserError: for a mechanism without a free energy, without gradients, or without a residual that ``temperature`` scales.
    """

    def __init__(self, image: ImageMechanism, attributes: AttributeSCM, predictors: Predictors,
                 config: FinetuneConfig = FinetuneConfig()) -> None:
        super().__init__()
        config.check()
        image.check_bounded("counterfactual training")
        if not image.differentiable:
            raise SchemaError(f"counterfactual training needs gradients through abduction and prediction, which the image mechanism "
                              f"{image.name!r} does not give; train another with --mechanism")
        check_prediction(image, config.temperature)
        self.image, self.config = image, config
        self.variables, self.dimensions = chosen(config, image.graph), math.prod(image.graph.image.shape)
        self.multiplier = Multiplier(config.multiplier_rate * self.dimensions, config.damping)
        self.register_buffer("bounds", torch.zeros(2))
        # in a tuple, modules are not this module's own: neither its parameters nor its state nor its mode
        self._frozen = (attributes.eval().requires_grad_(False), predictors.eval().requires_grad_(False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CounterfactualTraining:
        for module in self._frozen:  # they go where this module goes
            module._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, batch: Mapping[str, Tensor], noise: Noise, progress: float = 1.0) -> dict[str, Tensor]:
        """Terms ``(B,)``: ``loss`` is what is minimised, ``counterfactual`` is −Σ_k log q(pa*_k | x*), both in nats.

        Args:
            batch: attributes in physical units and ``image``, float in [0, 1], ``(B, C, H, W)``.
            noise: the training's own stream: of the latents, of the choice of parent, and of its permutation.
        """
        predictors = self._frozen[1]
        energy, abducted = self.image.bound_and_noise(batch, noise)
        attributes = self.intervene(batch, noise)
        images = self.image.predict(abducted, attributes, self.config.temperature)
        missed = -torch.stack(list(predictors.log_prob(images, attributes).values())).sum(0)
        excess, weight = energy / self.dimensions - self.bounds[0], self.multiplier.weight()
        if self.training:
            self.multiplier.ascend(_everywhere(excess.detach()).mean())
        return {"loss": missed + weight * excess, "counterfactual": missed, "free_energy": energy,
                "weight": weight.expand(len(energy))}

    @torch.no_grad()
    def intervene(self, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The batch's attributes after ``do(k = a permutation of its values)``, one parent k for the whole batch, ``(B,)`` each.

        Choice and permutation concern the global batch, whose rows are gathered: many processes do what one would.
        """
        attributes, rows = self._frozen[0], len(batch["image"])
        keys = _everywhere(noise(rows, len(self.variables) + 1))
        observed = {name: _everywhere(batch[name]) for name in attributes.names}
        name = self.variables[int(keys[0, :-1].argmax())]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # values of the validation split may lie beyond the training data
            changed = attributes.counterfactual(observed, {name: observed[name][keys[:, -1].argsort()]}, noise.generator)
        mine = slice(noise.rank * rows, (noise.rank + 1) * rows)
        return {name: values[mine] for name, values in changed.items()}

    # ------------------------------------------------------------------------------------------------ bound and selection
    def measure(self, train: Split, valid: Split, config: TrainingConfig, rows: int = 4096) -> dict[str, float]:
        """Set the bounds: the present free energy plus the slack; return validation's means of terms.

        On validation images it is measured as the training's validations measure it, of the same images with the same
        noise, so that none of their difference is chance. On training images, of the first ``rows``.
        """
        for k, (module, split, count) in enumerate(((self.image, train, rows), (self, valid, config.validation_rows))):
            means = _means(module, split, count, config, len(train))
            self.bounds[k] = means["free_energy"] / self.dimensions + self.config.slack
        return means

    def criterion(self, means: Mapping[str, float]) -> float:
        """−Σ_k log q(pa*_k | x*) on validation where the constraint holds there, to :data:`TOLERANCE`; else worse than any."""
        excess = means["free_energy"] / self.dimensions - float(self.bounds[1])
        return means["counterfactual"] if excess <= TOLERANCE else _WORST * (1 + excess)


def chosen(config: FinetuneConfig, graph: Graph) -> tuple[str, ...]:
    """The parents of the image that are intervened on, in their order.

    Raises:
        SchemaError: for a name that is not among them, or an image without any.
    """
    parents = graph.image.parents
    if not parents:
        raise SchemaError("the image has no causes in this graph, so it has no counterfactuals to train on")
    given = set(listed(config.variables, "--variables", error=SchemaError)) or set(parents)
    if unknown := sorted(given - set(parents)):
        raise SchemaError(f"--variables {config.variables}: {unknown[0]!r} is not among the image's parents, {', '.join(parents)}")
    return tuple(name for name in parents if name in given)


def _means(module: nn.Module, split: Split, count: int, config: TrainingConfig, rows: int) -> dict[str, float]:
    """Means of terms over the first ``count`` rows, as a training with this configuration on ``rows`` rows validates."""
    accelerator = make_accelerator(config.device, config.precision)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    noise, size = Noise(config.seed + 1, device, rank, world), global_batch(config, rows, world)
    with prepared(accelerator, module.to(device).eval()) as (wrapped,):
        return evaluate(wrapped, split, min(len(split), count), size, noise, accelerator)


def _everywhere(values: Tensor) -> Tensor:
    """The rows of all processes, in the order of the global batch; no gradients."""
    if not torch.distributed.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)

"""DeepLift with the rescale rule (Shrikumar et al. 2017, section 3.5.1), as a differentiable function of the network's weights.

attribution = multiplier·(x − x₀). A multiplier is the gradient of a network in which each nonlinearity f has, instead of its
slope, the secant between image and baseline, (f(z) − f(z₀)) / (z − z₀); all else is differentiated as it is. They add up to
l_y(x) − l_y(x₀) where the network has no other nonlinearities, and no products of activations.

captum's DeepLift cannot be trained on: it hooks modules, detaches their inputs and so loses how multipliers depend on weights.
Here the network is run once on [x, x, x₀]; every nonlinearity that it calls gives the first part
f(z) + secant·(z' − z), z' being its input there and z that of the second part: equal in value, linear in z'. So the gradient
by the first x is the multiplier, and whatever it depends on is in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mechanisms.runs.files import RunError

_ELEMENTWISE = {"relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh",
                "hardswish", "hardsigmoid"}
_SAME = 1e-7  # inputs that differ by less have no secant: the slope takes its place
_ROUNDING = 1e-5  # of a logit


def deeplift(network: nn.Module, images: Tensor, labels: Tensor, baseline: float = 0.0) -> Tensor:
    """Attributions ``(B, C, H, W)`` of the logits of ``labels`` ``(B,)``, against images that are ``baseline`` everywhere.

    The network must not let images of a batch depend on each other: take it in eval mode. Nonlinearities are found by the
    torch function that is called, whether by a module or not; those of a method that changes its tensor in place
    (``z.relu_()``) keep their slope.
    """
    images = images.detach()
    first = images.clone().requires_grad_()
    with _Secants():
        logits = network(torch.cat([first, images, torch.full_like(images, baseline)]))
    (multipliers,) = torch.autograd.grad(logits[: len(images)].gather(1, labels[:, None]).sum(), first, create_graph=True)
    return multipliers * (images - baseline)


def check_sum(network: nn.Module, images: Tensor, labels: Tensor, maps: Tensor, remedy: str, error: float = 0.01) -> None:
    """Raises RunError unless attributions ``(B, H, W)`` against black, summed over channels, add up to the difference of logits.

    The network is in eval mode. Those that do not would be wrong silently; ``remedy`` says what to do instead, ``error`` which
    share of the attributions' sizes rounding may take from their sum.
    """
    with torch.no_grad():
        there, black = (network(pixels).gather(1, labels[:, None])[:, 0] for pixels in (images, torch.zeros_like(images)))
    apart = (maps.sum((1, 2)) - (there - black)).abs()
    wrong = ~(apart <= error * maps.abs().sum((1, 2)) + _ROUNDING * there.abs())
    if wrong.any():
        raise RunError(f"DeepLift's attributions of {int(wrong.sum())} of {len(images)} images do not add up to the difference of their "
                       f"logits to a black image's: {type(network).__name__} has products of activations, or nonlinearities that are not "
                       f"known or change their tensor in place. {remedy}")


class _Secants(TorchFunctionMode):
    """Nonlinearities within, of batches of three parts, are secants in the first."""

    def __torch_function__(self, function: Callable[..., Any], types: Sequence[type], arguments: Sequence[Any] = (),
                           named: Mapping[str, Any] | None = None) -> Any:
        named, name = dict(named or {}), getattr(function, "__name__", "")
        if name in _ELEMENTWISE and arguments[0].requires_grad:
            plain = {key: value for key, value in named.items() if key != "inplace"}
            called = _hardsigmoid if name == "hardsigmoid" else function
            return _elementwise(lambda z: called(z, *arguments[1:], **plain), arguments[0])
        if name == "max_pool2d":
            return _pooled(arguments[0], *arguments[1:], **{key: value for key, value in named.items() if key != "return_indices"})
        return function(*arguments, **named)


def _elementwise(function: Callable[[Tensor], Tensor], joint: Tensor) -> Tensor:
    moving, z, base = joint.chunk(3)
    value, begun = function(z), function(base)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    return torch.cat([value + _secant(value - begun, z - base, slope) * (moving - z), value, begun])


def _hardsigmoid(z: Tensor) -> Tensor:
    """Of whose slope, unlike that of torch's own, there is a derivative."""
    return F.relu6(z + 3) / 6


def _pooled(joint: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """Of a window whose greatest entry is at a in the image and at b in the baseline, a answers for the rise, b for the fall."""
    moving, z, base = joint.chunk(3)
    (value, at), (begun, begun_at) = (F.max_pool2d(part, *arguments, **named, return_indices=True) for part in (z, base))
    top, pooled = torch.maximum(value, begun), value
    for rise, place, otherwise in ((top - begun, at, 1.0), (value - top, begun_at, 0.0)):
        inputs = [part.flatten(2).gather(2, place.flatten(2)).view_as(value) for part in (moving, z, base)]
        pooled = pooled + _secant(rise, inputs[1] - inputs[2], torch.full_like(rise, otherwise)) * (inputs[0] - inputs[1])
    return torch.cat([pooled, value, begun])


def _secant(rise: Tensor, run: Tensor, otherwise: Tensor) -> Tensor:
    """rise / run, or ``otherwise`` where there is no run; no gradient is ever that of a division by 0."""
    same = run.abs() < _SAME
    return torch.where(same, otherwise, rise / torch.where(same, torch.ones_like(run), run))

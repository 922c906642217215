"""XGradCAM: which places of an image speak for a class, read off the maps of any layer, in one pass for a whole batch.

Fu et al. 2020, *Axiom-based Grad-CAM*, eq. 9: channel k with the activations A_k and the gradients G_k = ∂logit/∂A_k has the
weight w_k = Σ G_k·A_k / (Σ A_k + 1e-7), sums over places, and the map is max(0, Σ_k w_k·A_k).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.networks.base import evaluating
from mechanisms.runs.files import RunError

_TINY = 1e-7


def xgradcam(network: nn.Module, images: Tensor, layer: str, targets: Tensor | None = None, resized: bool = True) -> Tensor:
    """A map in [0, 1] for each image, ``(B, H, W)``: 1 where the evidence for its target class is strongest.

    Each map is stretched to [0, 1], resized bilinearly to the image and stretched again, as the ``grad-cam`` package does.
    A map without evidence, or with the same everywhere, is 0. The network is run in eval mode, so that no image depends on
    its batch and one backward pass serves all of them; every module gets its mode back, and no parameter a gradient. The
    layers below ``layer`` are run without gradients.

    Args:
        network: logits ``(B, K)`` of images float in [0, 1], ``(B, C, H, W)``.
        layer: dotted name of a module of ``network`` whose output is ``(B, F, h, w)``, see :func:`layers`.
        targets: the class ``(B,)`` whose logit is explained; if None, the predicted one.
        resized: if not, maps have the layer's own size, ``(B, h, w)``.

    Raises:
        RunError: for an unknown layer, one that is not run, is run more than once, or whose output has no places; for
            logits that are not ``(B, K)``, or that do not depend on the layer; for targets that are none of the K classes.
    """
    gradients, activations = class_gradients(network, images, layer, targets)
    weights = (gradients * activations).sum((2, 3)) / (activations.sum((2, 3)) + _TINY)
    evidence = stretched(torch.einsum("bf,bfhw->bhw", weights, activations).relu())
    return over(images, evidence) if resized else evidence


def class_gradients(network: nn.Module, images: Tensor, layer: str, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What every class-activation map is made of: ∂logit/∂A of the target class, and the layer's output A, ``(B, F, h, w)`` each.

    Arguments and errors are those of :func:`xgradcam`.
    """
    logits, maps = _forward(network, images, layer)
    if logits.ndim != 2 or len(logits) != len(images):
        raise RunError(f"the network gives outputs of shape {tuple(logits.shape)} for {len(images)} images; XGradCAM needs logits (B, K)")
    targets = classes_of(logits, targets)
    if not logits.requires_grad:
        raise RunError(f"the logits do not depend on the layer {layer!r}; choose one before them: {', '.join(layers(network))}")
    with torch.enable_grad():  # even where the caller has turned gradients off
        (gradients,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), maps)
    return gradients, maps.detach()


def classes_of(logits: Tensor, targets: Tensor | None) -> Tensor:
    """The classes ``(B,)`` that are explained: ``targets``, or the predicted ones.

    Raises:
        RunError: for targets that are not one of the K classes for each image.
    """
    targets = logits.argmax(1) if targets is None else torch.as_tensor(targets, device=logits.device).long()
    if targets.shape != (len(logits),) or (len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]):
        raise RunError(f"targets must be ({len(logits)},) classes in 0..{logits.shape[1] - 1}; got shape {tuple(targets.shape)}, "
                       f"values {targets.unique().tolist()[:10]}")
    return targets


def over(images: Tensor, maps: Tensor) -> Tensor:
    """Maps ``(B, h, w)`` resized bilinearly to the images and stretched again, ``(B, H, W)``."""
    return stretched(F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0])


def layers(network: nn.Module) -> list[str]:
    """Names of all modules, in the order in which they are defined."""
    return [name for name, _ in network.named_modules() if name]


def _forward(network: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Logits, and the layer's output that they can be differentiated by."""
    modules = dict(network.named_modules())
    if not layer or layer not in modules:
        raise RunError(f"unknown layer {layer!r}; {type(network).__name__} has {', '.join(layers(network)) or 'none'}")
    seen: list[Tensor] = []

    def cut(module: nn.Module, given: object, output: Tensor) -> Tensor:
        """Begin the graph here; what follows gets a copy, because it may change it in place."""
        if seen:
            raise RunError(f"the layer {layer!r} is run more than once for one image; give each place a module of its own, or name another")
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RunError(f"the output of the layer {layer!r} is {shape}, but XGradCAM needs maps (B, F, h, w): name a convolution, or "
                           f"what follows it; {type(network).__name__} has {', '.join(layers(network))}")
        torch.set_grad_enabled(True)  # until the end of the forward pass
        seen.append(output.detach().float().requires_grad_())
        return seen[0].to(output.dtype, copy=True)

    hook = modules[layer].register_forward_hook(cut)
    try:
        with evaluating(network), torch.no_grad():
            logits = network(images)
    finally:
        hook.remove()
    if not seen:
        raise RunError(f"the layer {layer!r} is never run for an image; name another: {', '.join(layers(network))}")
    return logits.float(), seen[0]


def stretched(maps: Tensor) -> Tensor:
    """Each map from 0 at its least to 1 at its greatest value."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + _TINY)


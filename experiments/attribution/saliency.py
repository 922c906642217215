"""Saliency that a classifier can be trained on: where it looks, as a differentiable function of its weights, and penalties of it.

A saliency s is ``(B, C, H, W)`` or, of Grad-CAM, ``(B, 1, H, W)``. All are taken with the network in eval mode: batch norm uses its
running statistics and dropout is off, so that no image's saliency depends on its batch, and one backward pass of the sum over
the batch gives every image its own. (In train mode that sum would also hold what an image does to the statistics of the
others.) Gradients reach the weights by double backward.

| name | s |
| --- | --- |
| ``gradient`` | ∂l_y/∂x, of each image's own class y |
| ``logits_sum`` | ∂Σ_k l_k/∂x |
| ``rrr`` | ∂Σ_k log p_k/∂x, right for the right reasons (Ross et al. 2017, eq. 1) |
| ``deeplift`` | DeepLift of l_y with the rescale rule; see :mod:`experiments.attribution.deeplift` |
| ``gradcam`` | Grad-CAM of l_y at the network's ``cam_layer`` (Selvaraju et al. 2017, eq. 1 and 2), resized to the image |

The penalties follow Chang et al. 2021 (CVPR), with each image's own class instead of ``logits[:, y].sum()``, which also holds the
logits that image i has for the classes of all other images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.errors import valid_are
from experiments.attribution.deeplift import check_sum
from experiments.attribution.deeplift import deeplift as rescaled
from experiments.networks.base import Network, evaluating
from mechanisms.runs.files import RunError

Saliency = Callable[[Network, Tensor, Tensor], Tensor]
Penalty = Callable[[Tensor, Tensor], Tensor]
_TINY = 1e-12
_EXACT = 1e-5  # share of DeepLift's attributions that may be missing from their sum: rounding leaves 1e-8, products 1e-3 and more


# -------------------------------------------------------------------------------------------------------- saliency
def gradient(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """∂l_y/∂x of each image's own class."""
    return _by_pixels(network, images, lambda logits: logits.gather(1, labels[:, None]))


def logits_sum(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """∂Σ_k l_k/∂x; nothing for a network of one output, whose two logits always sum to 0."""
    return _by_pixels(network, images, lambda logits: logits)


def rrr(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """∂Σ_k log p_k/∂x."""
    return _by_pixels(network, images, lambda logits: logits.log_softmax(1))


def deeplift(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """DeepLift of l_y, compared with a black image."""
    return rescaled(network, images, labels)


def gradcam(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """max(0, Σ_k α_k·A_k), α_k the mean over places of ∂l_y/∂A_k, resized bilinearly; ``(B, 1, H, W)``."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor) -> Tensor:
        seen.append(output if output.requires_grad else output.detach().requires_grad_())  # the latter of a frozen body
        return seen[-1].clone()  # what follows may change it in place

    hook = network.get_submodule(network.cam_layer).register_forward_hook(keep)
    try:
        logits = network(images)
    finally:
        hook.remove()
    (maps,) = seen
    (slopes,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps, create_graph=True)
    evidence = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    return F.interpolate(evidence, images.shape[-2:], mode="bilinear", align_corners=False)


def _by_pixels(network: Network, images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    images = images.detach().requires_grad_()
    return torch.autograd.grad(score(network(images)).sum(), images, create_graph=True)[0]


SALIENCY: dict[str, Saliency] = {f.__name__: f for f in (gradient, logits_sum, rrr, deeplift, gradcam)}


def saliency(name: str, network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """The saliency of that name, ``(B, C, H, W)`` or ``(B, 1, H, W)``, in single precision; the network's mode is left as it was found.

    Args:
        images: float in [0, 1], ``(B, C, H, W)``; no gradient flows back to them.
        labels: int64 ``(B,)``, the class whose logit is explained.

    Raises:
        RunError: for an unknown name; for ``gradcam`` of a network without a layer of maps.
    """
    if name not in SALIENCY:
        raise RunError(f"unknown saliency {name!r}; {valid_are(SALIENCY, name)}")
    if name == "gradcam" and not network.cam_layer:
        raise RunError(f"Grad-CAM needs a network with a layer of maps, which --network {network.name} has not; take --network smallcnn")
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False), evaluating(network):
        return SALIENCY[name](network, images if images.dtype == torch.float64 else images.float(), labels)


def check_saliency(name: str, network: Network) -> None:
    """Raises RunError for a saliency that would be wrong for a network whatever its weights: DeepLift's of one with products."""
    if name == "deeplift":
        _check_deeplift(type(network), network.shape, network.classes, network.hidden)


@cache
def _check_deeplift(kind: type[Network], shape: tuple[int, int, int], classes: int, hidden: int) -> None:
    """Of random weights and pixels, in double precision, after batch norm has seen these: single precision, and signals that vanish
    in a network whose statistics are not yet its own, would hide what a product takes from the sum, 1e-3 of it at times.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, images = kind(shape, classes, hidden).double(), torch.rand(2, *shape, dtype=torch.float64)
        network.head.float()  # as it computes
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        with torch.no_grad():
            network.train()(images)
    labels = torch.arange(2)
    maps = saliency("deeplift", network.eval(), images, labels).detach().sum(1)
    check_sum(network, images, labels, maps, "Take saliency_of=gradient, which minds none of these", _EXACT)


# -------------------------------------------------------------------------------------------------------- penalties
def outside(saliency_map: Tensor, region: Tensor) -> Tensor:
    """mean((s·(1 − m))²) over channels and all places."""
    return (saliency_map * ~region[:, None]).square().flatten(1).mean(1)


def cosine(saliency_map: Tensor, region: Tensor) -> Tensor:
    """1 − cosine(a, m), a = Σ_c |s_c|; does not depend on the scale of s."""
    size, inside = saliency_map.abs().sum(1).flatten(1), region.flatten(1).to(saliency_map.dtype)
    norms = [(values.square().sum(1) + _TINY**2).sqrt() for values in (size, inside)]
    return 1 - (size * inside).sum(1) / (norms[0] * norms[1])


def f1(saliency_map: Tensor, region: Tensor) -> Tensor:
    """1 − F1 of a as a soft prediction of m: 1 − 2·Σ a·m / (Σ a + Σ m), a = Σ_c s_c² as a share of the image's own greatest."""
    size, inside = saliency_map.square().sum(1).flatten(1), region.flatten(1).to(saliency_map.dtype)
    size = size / (size.amax(1, keepdim=True) + _TINY**2)
    return 1 - 2 * (size * inside).sum(1) / (size.sum(1) + inside.sum(1) + _TINY)


PENALTIES: dict[str, Penalty] = {f.__name__: f for f in (outside, cosine, f1)}


def penalty(name: str, saliency_map: Tensor, region: Tensor) -> Tensor:
    """How far the saliency ``(B, C, H, W)`` lies outside ``region``, bool ``(B, H, W)``; ``(B,)``, 0 at best.

    Raises:
        RunError: for an unknown name, or a region of another size.
    """
    if name not in PENALTIES:
        raise RunError(f"unknown saliency penalty {name!r}; {valid_are(PENALTIES, name)}")
    if region.shape != (len(saliency_map), *saliency_map.shape[-2:]):
        raise RunError(f"a saliency of shape {tuple(saliency_map.shape)} needs regions of shape "
                       f"{(len(saliency_map), *saliency_map.shape[-2:])}, not {tuple(region.shape)}")
    return PENALTIES[name](saliency_map, region)

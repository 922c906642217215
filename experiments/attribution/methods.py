"""Attributions: where in an image the evidence for a class is, by any of several methods, for any network that gives logits.

Each method is an :class:`Attribution`, a function ``(network, images (B, C, H, W), targets (B,), layer) → maps (B, H, W)``. The
network is run in eval mode and gets its modes back; no parameter gets a gradient; the map of an image does not depend on its
batch. Maps of the saliency and of class activations are not negative; DeepLift's, integrated gradients' and LIME's are signed:
what is negative speaks against the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.errors import valid_are
from experiments.attribution.deeplift import check_sum
from experiments.attribution.deeplift import deeplift as rescaled
from experiments.attribution.lime import SAMPLES, lime
from experiments.attribution.xgradcam import class_gradients, classes_of, over, stretched, xgradcam
from experiments.networks.base import at_once, evaluating
from mechanisms.runs.files import RunError

STEPS = 50  # of the path of integrated gradients
_DEEPER = 8  # times as many values are kept for gradients as without

Compute = Callable[[nn.Module, Tensor, Tensor, str], Tensor]


@dataclass(frozen=True)
class Attribution:
    """One method, called as a function.

    Attributes:
        name: as on the command line.
        title: as in pictures.
        signed: whether maps have negative values, which speak against the class.
        layered: whether maps are read off a layer of the network.
        passes: runs of the network that an image costs, about.
        compute: see :meth:`__call__`; of one batch, with the network in eval mode and gradients on.
    """

    name: str
    title: str
    signed: bool
    layered: bool
    passes: int
    compute: Compute

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor | None = None, layer: str = "") -> Tensor:
        """Maps ``(B, H, W)``, on the images' device.

        Args:
            network: logits ``(B, K)`` of images float in [0, 1], ``(B, C, H, W)``.
            targets: the class ``(B,)`` of each image that is explained; if None, the predicted one.
            layer: dotted name of the module whose maps are read, by methods that read any; what the network itself names
                without it.

        Raises:
            RunError: for a method that reads a layer and a network that names none, and for a layer that has no maps, see
                :func:`experiments.attribution.xgradcam.xgradcam`; for logits that are not ``(B, K)``; for targets that are none of the K
                classes; for a network or image that the method cannot explain.
        """
        images, layer = images.detach(), self.layer_of(network, layer)
        parts = images.split(max(1, at_once(tuple(images.shape[1:])) // _DEEPER))
        with evaluating(network):
            with torch.no_grad():
                logits = torch.cat([network(part) for part in parts])
            if logits.ndim != 2 or len(logits) != len(images):
                raise RunError(f"the network gives outputs of shape {tuple(logits.shape)} for {len(images)} images; {self.title} needs "
                               "logits (B, K)")
            chosen = classes_of(logits, targets).split(len(parts[0]))
            with torch.enable_grad():
                maps = [self.compute(network, part, classes, layer).detach() for part, classes in zip(parts, chosen, strict=True)]
        return torch.cat(maps)

    def layer_of(self, network: nn.Module, layer: str = "") -> str:
        """The layer that is read; empty for methods that read none.

        Raises:
            RunError: where the network names none and none is given.
        """
        if not self.layered:
            return ""
        if not (read := layer or getattr(network, "cam_layer", "")):
            others = ", ".join(name for name, method in ATTRIBUTIONS.items() if not method.layered)
            name = getattr(network, "name", "") or type(network).__name__
            raise RunError(f"{self.title} draws the maps of a layer, but {name} has no layer of maps; take a method that needs none: "
                           f"--method {others}; or name a layer: --layer NAME")
        return read


# -------------------------------------------------------------------------------------------------------- by gradients
def _saliency(network: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    """``(Σ_c (∂l_y/∂x_c)²)^½`` (Simonyan et al. 2014, §3), so that its square is that of the gradient."""
    from captum.attr import Saliency

    return Saliency(network).attribute(images.clone().requires_grad_(), targets, abs=False).square().sum(1).sqrt()


def _integrated_gradients(network: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    """``Σ_c x_c·∫ ∂l_y/∂x_c (t·x) dt`` over t in [0, 1], from black (Sundararajan et al. 2017, eq. 1); :data:`STEPS` points."""
    from captum.attr import IntegratedGradients

    given = images.clone().requires_grad_()
    return IntegratedGradients(network).attribute(given, target=targets, n_steps=STEPS, internal_batch_size=len(images)).sum(1)


def _deeplift(network: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    """DeepLift by the rescale rule, against black, summed over channels; see :mod:`experiments.attribution.deeplift`.

    Attributions that do not add up to the difference of logits would be wrong silently; they are refused.
    """
    maps = rescaled(network, images, targets).detach().sum(1)
    check_sum(network, images, targets, maps, "Take integrated_gradients, which minds none of these")
    return maps


# -------------------------------------------------------------------------------------------------------- by a layer's maps
def _gradcam(network: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    """``max(0, Σ_k α_k·A_k)``, α_k the mean over places of ∂l_y/∂A_k (Selvaraju et al. 2017, eq. 1 and 2), stretched to [0, 1]."""
    gradients, activations = class_gradients(network, images, layer, targets)
    return over(images, stretched((gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu()))


def _xgradcam(network: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    return xgradcam(network, images, layer, targets)


def _lime(network: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    return lime(network, images, targets)


ATTRIBUTIONS: dict[str, Attribution] = {method.name: method for method in (
    Attribution("saliency", "saliency", False, False, 1, _saliency),
    Attribution("gradcam", "Grad-CAM", False, True, 1, _gradcam),
    Attribution("xgradcam", "XGradCAM", False, True, 1, _xgradcam),
    Attribution("deeplift", "DeepLift", True, False, 3, _deeplift),
    Attribution("integrated_gradients", "integrated gradients", True, False, STEPS, _integrated_gradients),
    Attribution("lime", "LIME", True, False, SAMPLES, _lime))}


def attribution(name: str) -> Attribution:
    """The method of that name.

    Raises:
        RunError: for an unknown one; the message lists all.
    """
    if name not in ATTRIBUTIONS:
        raise RunError(f"unknown method of attribution {name!r}; {valid_are(ATTRIBUTIONS, name)}")
    return ATTRIBUTIONS[name]

"""LIME: which superpixels speak for a class, by a linear model of what the network says when some of them are hidden.

Ribeiro et al. 2016, *Why should I trust you?*, §3.4, with the settings of its package, as published for camera traps: quickshift
superpixels, 1,000 samples, a hidden superpixel is its mean colour, ridge regression of the class's probability on what is
shown, samples weighted by exp(−d²/.25²)^½ with d = 1 − the cosine between what is shown and the whole image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dscm.figures.style import as_pixels
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded

SAMPLES = 1000
_WIDTH = 0.25  # of the kernel
_KERNEL, _REACH, _RATIO, _SIDE = 4.0, 200.0, 0.2, 224  # quickshift's, in pixels of images of this side
_BATCH = 100  # samples at once


def lime(network: nn.Module, images: Tensor, targets: Tensor, samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """The weight of each pixel's superpixel for the probability of the target class, ``(B, H, W)``; negative: speaks against it.

    Each image has the same stream of samples, a function of ``seed``, whatever its batch.

    Args:
        network: in eval mode; logits ``(B, K)`` of images ``(B, C, H, W)``.

    Raises:
        RunError: for an image in which there are no two superpixels.
    """
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime

    def likeness(original: Tensor, shown: Tensor, kept: Tensor, **given: object) -> Tensor:
        return torch.exp(-0.5 * (1 - kept.float().mean().sqrt()).square() / _WIDTH**2)

    maps = []
    for image, target in zip(images, targets, strict=True):
        regions, generator = superpixels(image), seeded(seed)

        def shown(original: Tensor, num_interp_features: int, generator: torch.Generator = generator, **given: object) -> Tensor:
            return torch.randint(2, (1, num_interp_features), generator=generator).to(original.device)

        explained = Lime(lambda pixels: network(pixels).softmax(1), SkLearnRidge(alpha=1.0), likeness, shown)
        with torch.no_grad():
            maps.append(explained.attribute(image[None], mean_colours(image, regions)[None], int(target), feature_mask=regions[None, None],
                                            n_samples=samples, perturbations_per_eval=_BATCH)[0, 0])
    return torch.stack(maps).to(images.dtype)


def superpixels(image: Tensor) -> Tensor:
    """The number of each pixel's superpixel, from 0, int64 ``(H, W)``, by quickshift (Vedaldi & Soatto 2008) in Lab.

    Kernel and reach are those of LIME's package for images of 224 pixels, and shrink in proportion with smaller ones, of which
    there would be two superpixels otherwise. An image of one channel is grey in all three, of two its channels are red and
    green, of four or more their mean is grey.

    Raises:
        RunError: where there is only one.
    """
    from skimage.segmentation import quickshift

    pixels = as_pixels(image.detach().cpu().double())
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    scale = min(1.0, min(pixels.shape[:2]) / _SIDE)
    regions = quickshift(np.ascontiguousarray(pixels.numpy()), kernel_size=max(1.0, _KERNEL * scale), max_dist=_REACH * scale, ratio=_RATIO)
    if regions.max() == 0:
        raise RunError(f"LIME hides superpixels, but there is only one in an image of {pixels.shape[0]}×{pixels.shape[1]} pixels; take a "
                       "method that looks at single pixels, such as saliency")
    return torch.from_numpy(regions).long().to(image.device)


def mean_colours(image: Tensor, regions: Tensor) -> Tensor:
    """The image ``(C, H, W)`` with every superpixel in its mean colour."""
    where, count = regions.flatten(), int(regions.max()) + 1
    sums = image.new_zeros(len(image), count).index_add(1, where, image.flatten(1))
    return (sums / torch.bincount(where, minlength=count))[:, where].view_as(image)

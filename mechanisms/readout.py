"""From a decoder's features to the distribution of pixels, with the parents acting linearly at the very end."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechanisms.likelihood import DiscretizedGaussian, soft_bound

FLOOR = -7.0  # of log σ: half a bin is e^−5.5, so less gains no likelihood, and gradients blow up where μ is off


class BilinearReadout(nn.Module):
    """μ = Σ_k (a_k + B_k·pa) f_k(h) − 1 and log σ = s(h) + c·pa: basis images, weighted linearly by the parents.

    What a parent does to appearance everywhere alike (brightness, contrast, hue) is linear in these weights, and a
    linear map extrapolates to combinations of parents that training hardly ever shows. A read-out that sees the parents
    only through the features has to learn each combination.

    Args:
        width: channels of the features.
        parents: columns of the encoded parents.
        channels: of the image.
        bases: number of basis images.
        patch: pixels per side that one feature position unfolds to.
    """

    def __init__(self, width: int, parents: int, channels: int, bases: int, patch: int) -> None:
        super().__init__()
        self.channels, self.bases, self.patch = channels, bases, patch
        self.maps = nn.Conv2d(width, (bases + channels) * patch * patch, 3, padding=1)
        self.offset = nn.Parameter(torch.full((1, bases, 1, 1), 0.1))
        self.weights = nn.Linear(parents, channels * bases)
        self.log_scale = nn.Linear(parents, channels)
        with torch.no_grad():
            self.maps.weight.mul_(0.5)
            self.maps.bias.zero_()
            # at first every channel shows the first basis image alone
            nn.init.normal_(self.weights.weight, std=0.02)
            self.weights.bias.zero_().view(channels, bases)[:, 0] = 1.0
            self.log_scale.weight.zero_()
            self.log_scale.bias.fill_(-1.0)

    def forward(self, h: Tensor, parents: Tensor) -> DiscretizedGaussian:
        """``h (B, width, H/patch, W/patch)``, ``parents (B, P)`` → pixels ``(B, channels, H, W)``."""
        # In float32 throughout: half precision has 8 bits of mantissa, which is coarser than a grey level.
        with torch.autocast(h.device.type, enabled=False):
            maps = F.pixel_shuffle(self.maps(F.silu(h.float())), self.patch)
            weights = self.weights(parents).view(-1, self.channels, self.bases)
            loc = torch.einsum("bck,bkhw->bchw", weights, maps[:, : self.bases] + self.offset) - 1
            log_scale = maps[:, self.bases :] + self.log_scale(parents)[:, :, None, None]
            return DiscretizedGaussian(loc, soft_bound(log_scale, FLOOR, 1.0))

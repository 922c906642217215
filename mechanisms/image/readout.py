"""From a decoder's features to the distribution of pixels, with the parents acting linearly at the very end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.errors import UserError
from mechanisms.image.config import ImageConfig
from mechanisms.image.likelihood import ChannelAutoregression, DiscretizedGaussian, IndependentPixels, PixelLikelihood, soft_bound
from mechanisms.image.logistic import LogisticMixture

FLOOR = -7.0  # of log σ: half a bin is e^−5.5, so less gains no likelihood, and gradients blow up where μ is off


class ChannelCoupling(nn.Module):
    """Coefficients k = tanh(f(h) + c·pa) of a :class:`ChannelAutoregression`, all 0 at the start.

    Args:
        width, parents, channels, patch: as for :class:`Readout`.
    """

    def __init__(self, width: int, parents: int, channels: int, patch: int) -> None:
        super().__init__()
        pairs, self.patch = channels * (channels - 1) // 2, patch
        self.maps = nn.Conv2d(width, pairs * patch * patch, 1)
        self.parents = nn.Linear(parents, pairs, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, parents: Tensor) -> Tensor:
        """``h (B, width, H/patch, W/patch)``, ``parents (B, P)`` → ``(B, channels·(channels − 1)/2, H, W)``."""
        return torch.tanh(F.pixel_shuffle(self.maps(h), self.patch) + self.parents(parents)[:, :, None, None])


class Readout(nn.Module):
    """From features and parents to a :class:`PixelLikelihood`, autoregressive over channels where there are several.

    Args:
        width: channels of the features.
        parents: columns of the encoded parents.
        channels: of the image.
        patch: pixels per side that one feature position unfolds to.
    """

    def __init__(self, width: int, parents: int, channels: int, patch: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.coupling = ChannelCoupling(width, parents, channels, patch) if channels > 1 else None

    @abstractmethod
    def independent(self, h: Tensor, parents: Tensor) -> IndependentPixels:
        """The pixels where earlier channels are as predicted, from activated features in float32."""

    def forward(self, h: Tensor, parents: Tensor) -> PixelLikelihood:
        """``h (B, width, H/patch, W/patch)``, ``parents (B, P)`` → pixels ``(B, channels, H, W)``."""
        # In float32 throughout: half precision has 8 bits of mantissa, which is coarser than a grey level.
        with torch.autocast(h.device.type, enabled=False):
            h = F.silu(h.float())
            pixels = self.independent(h, parents)
            return pixels if self.coupling is None else ChannelAutoregression(pixels, self.coupling(h, parents))

    @abstractmethod
    def draw_residual(self, rows: int, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
        """u ~ p(u), ``(rows, *shape)``, made of ``draw(rows, *shape)``'s standard normals."""


class BilinearReadout(Readout):
    """μ = Σ_k (a_k + B_k·pa) f_k(h) − 1 and log σ = s(h) + c·pa: basis images, weighted linearly by the parents.

    What a parent does to appearance everywhere alike (brightness, contrast, hue) is linear in these weights, and a
    linear map extrapolates to combinations of parents that training hardly ever shows. A read-out that sees the parents
    only through the features has to learn each combination.

    Args:
        width, parents, channels, patch: as for :class:`Readout`.
        bases: number of basis images.
    """

    def __init__(self, width: int, parents: int, channels: int, bases: int, patch: int) -> None:
        super().__init__(width, parents, channels, patch)
        self.bases = bases
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

    def independent(self, h: Tensor, parents: Tensor) -> DiscretizedGaussian:
        maps = F.pixel_shuffle(self.maps(h), self.patch)
        weights = self.weights(parents).view(-1, self.channels, self.bases)
        loc = torch.einsum("bck,bkhw->bchw", weights, maps[:, : self.bases] + self.offset) - 1
        log_scale = maps[:, self.bases :] + self.log_scale(parents)[:, :, None, None]
        return DiscretizedGaussian(loc, soft_bound(log_scale, FLOOR, 1.0))

    def draw_residual(self, rows: int, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
        return draw(rows, *shape)


class MixtureReadout(Readout):
    """μ_j = Σ_k (a_k + B_k·pa) (f_k(h) + o_jk(h)) − 1, log s_j = r_j(h) + c·pa and logits l_j(h) of K logistics j.

    The bilinear read-out with K variants o_j of every basis image, so that parents act linearly on each component's
    location, for the same reason as in :class:`BilinearReadout`. The variants are mixed by the parents too and not
    added afterwards: where a pixel may belong to the background or to a shape, brightness moves the shape and not the
    background. Weights see the parents through the features only; they are no linear function of anything.

    Args:
        width, parents, channels, patch: as for :class:`Readout`.
        bases: number of basis images.
        components: K.
    """

    def __init__(self, width: int, parents: int, channels: int, bases: int, patch: int, components: int) -> None:
        super().__init__(width, parents, channels, patch)
        self.bases, self.components = bases, components
        self.maps = nn.Conv2d(width, bases * patch * patch, 3, padding=1)
        self.shapes = nn.Conv2d(width, (bases + 2 * channels) * components * patch * patch, 1)
        self.offset = nn.Parameter(torch.full((1, bases, 1, 1), 0.1))
        self.weights = nn.Linear(parents, channels * bases)
        self.log_scale = nn.Linear(parents, channels)
        with torch.no_grad():
            for maps in (self.maps, self.shapes):
                maps.weight.mul_(0.5)
                maps.bias.zero_()
            # at first every channel shows the first basis image alone, with its variants spread about it
            nn.init.normal_(self.weights.weight, std=0.02)
            self.weights.bias.zero_().view(channels, bases)[:, 0] = 1.0
            self.shapes.bias.view(-1, components, patch * patch)[0] = torch.linspace(-0.5, 0.5, components)[:, None]
            self.log_scale.weight.zero_()
            self.log_scale.bias.fill_(-1.5)

    def independent(self, h: Tensor, parents: Tensor) -> LogisticMixture:
        shared = F.pixel_shuffle(self.maps(h), self.patch) + self.offset
        shapes = F.pixel_shuffle(self.shapes(h), self.patch).unflatten(1, (-1, self.components))
        variants, logits, log_scales = shapes.split([self.bases, self.channels, self.channels], 1)
        weights = self.weights(parents).view(-1, self.channels, self.bases)
        locs = torch.einsum("bck,bkjhw->jbchw", weights, variants + shared[:, :, None]) - 1
        log_scales = log_scales.movedim(2, 0) + self.log_scale(parents)[:, :, None, None]
        return LogisticMixture(logits.movedim(2, 0), locs, soft_bound(log_scales, FLOOR, 1.0))

    def draw_residual(self, rows: int, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
        """Standard logistic: logit Φ(n) of standard normals n."""
        normal = draw(rows, *shape)
        return torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)


def make_readout(config: ImageConfig, width: int, parents: int, channels: int) -> Readout:
    """The read-out that ``config.likelihood`` names.

    Args:
        config: its likelihood, bases, patch and components are read.
        width: channels of the features.
        parents: columns of the encoded parents.
        channels: of the image.

    Raises:
        UserError: for an unknown likelihood; the valid ones are listed.
    """
    makers: dict[str, Callable[[], Readout]] = {
        "gaussian": lambda: BilinearReadout(width, parents, channels, config.bases, config.patch),
        "logistic-mixture": lambda: MixtureReadout(width, parents, channels, config.bases, config.patch, config.components)}
    if config.likelihood not in makers:
        raise UserError(f"unknown likelihood {config.likelihood!r}; valid are {', '.join(makers)}")
    return makers[config.likelihood]()

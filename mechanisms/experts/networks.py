"""Experts and discriminators, each a module that knows nothing of competition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from datasets.errors import UserError
from mechanisms.experts.options import ExpertsConfig

Shape = tuple[int, int, int]
_GAIN = 10.0  # of the wide filter: Adam moves every weight by about the same, and these have the longest way to go
_SPREAD = 0.026  # norm of a filter's initial weights: experts that are exactly alike would never part
_FAR = 0.01  # of the filters' initial weights where no identity is wanted
_SMALL = 0.01  # of a residual network's last layer at the start
_SIDES = 4  # images are halved twice


class _Bounded(torch.autograd.Function):
    """Clamps to [0, 1]; gradients pass unless they would take a value that is out of bounds further out."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(0, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        return gradient * ~(((value > 1) & (gradient < 0)) | ((value < 0) & (gradient > 0)))


def bounded(value: Tensor) -> Tensor:
    """``value`` clamped to [0, 1], with a gradient that leads back from beyond, see :class:`_Bounded`."""
    return _Bounded.apply(value) if torch.is_grad_enabled() else value.clamp(0, 1)


class ResidualExpert(nn.Module):
    """x̂ = clamp(x + k ∗ x + h(x)): a linear filter that reaches ``reach`` pixels far, and a small network for the rest.

    Both are almost 0 at the start, so that the expert starts at the identity (mean squared error below 0.002). The filter is
    why translations are found: they are one weight of it, whose gradient is a mean over all pixels of all images. (In a trial with one
    expert and one translation by 4 pixels, without the filter and with gradients that pass the clamp in both directions, the mean
    squared error to the clean image was 0.041 after 270 updates; with both as they are, 0.004 after 120.)

    Shapes: ``(B, C, H, W)`` in [0, 1] → the same.
    """

    def __init__(self, shape: Shape, config: ExpertsConfig) -> None:
        super().__init__()
        channels, width = shape[0], config.width
        self.reach = config.reach
        if self.reach:
            side = 2 * self.reach + 1
            spread = _SPREAD / (side * math.sqrt(channels))  # so that no filter, however large, leads away from the identity
            self.filter = nn.Parameter(torch.randn(channels, channels, side, side) * (spread / _GAIN if config.identity else _FAR))
            self.shift = nn.Parameter(torch.zeros(channels))
        self.convs = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in
                                   zip((4 * channels, width, width, width), (width, width, width, 4 * channels), strict=True))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, 0.1)
            nn.init.zeros_(conv.bias)
        if config.identity:
            with torch.no_grad():
                self.convs[-1].weight.mul_(_SMALL)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(x - 0.5, 2)
        for conv in self.convs[:-1]:
            h = F.leaky_relu(conv(h), 0.1)
        y = x + F.pixel_shuffle(self.convs[-1](h), 2)
        if self.reach:
            y = y + F.conv2d(x, _GAIN * self.filter, _GAIN * self.shift, padding=self.reach)
        return bounded(y)


class ConvExpert(nn.Sequential):
    """σ(conv(f(f(f(f(x)))))), f = ELU(BN(conv3-32)), as published for grey images; with ReLU for colour ones.

    Source: Parascandolo et al. 2018, appendix; the colour variant is that of a course project's faces.
    """

    def __init__(self, shape: Shape, config: ExpertsConfig) -> None:
        channels = shape[0]
        layers: list[nn.Module] = []
        for n in (channels, 32, 32, 32):
            layers += [nn.Conv2d(n, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ELU() if channels == 1 else nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(32, channels, 3, padding=1), nn.Sigmoid())


class VAEExpert(nn.Module):
    """A variational autoencoder: conv3 32, 64, 64 (BN, ReLU) → ``latent`` numbers → 64, 64, 32, C; the loss adds β·KL."""

    def __init__(self, shape: Shape, config: ExpertsConfig) -> None:
        super().__init__()
        channels, height, width = shape
        widths, layers = (channels, 32, 64, 64), []
        for k, (n, m) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [nn.Conv2d(n, m, 3, stride=2 if k else 1, padding=1), nn.BatchNorm2d(m), nn.ReLU()]
        self.places = (64, height // _SIDES, width // _SIDES)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(math.prod(self.places), 2 * config.latent))
        self.inner = nn.Linear(config.latent, math.prod(self.places))
        layers = []
        for n, m, up in ((64, 64, True), (64, 64, False), (64, 32, True)):  # the last one is at half of the resolution
            layers += [nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU(), *[nn.Upsample(scale_factor=2)] * up]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(32, channels, 3, padding=1), nn.Sigmoid())

    def reconstruct(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output and KL(q(z | x) ‖ N(0, 1)) in nats, ``(B,)``; z is the mean of q(z | x), or drawn with ``noise (B, latent)``."""
        mean, log_scale = self.encoder(x).chunk(2, 1)
        log_scale = log_scale.clamp(-8, 4)
        kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum(1)
        z = mean if noise is None else mean + log_scale.exp() * noise
        return self.decoder(self.inner(z).view(-1, *self.places)), kl

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(x, None)[0]


class Discriminator(nn.Module):
    """D(x), a logit ``(B,)`` of being canonical, from images ``(B, C, H, W)`` in [0, 1].

    Args:
        shape: of images.
        config: ``discriminator`` chooses among *compact*, which works at half the resolution with strides; *published*:
            3 × conv3-16, pool, 2 × conv3-32, pool, 2 × conv3-64, pool, FC 1024, FC 1 with ELU (Parascandolo et al.
            2018, appendix); *domain*: conv3 16, 16, 32, pool, 32, 32, pool, 64, 64, pool, FC 25, 1, the domain classifier
            of a course project (whose 28² images leave 64 × 3 × 3 = 576 numbers before the first FC).
    """

    def __init__(self, shape: Shape, config: ExpertsConfig) -> None:
        super().__init__()
        channels, height, width = shape
        if config.discriminator == "compact":
            w, slope = config.discriminator_width, nn.LeakyReLU(0.2)
            layers = [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, w, 3, padding=1), slope, nn.Conv2d(w, 2 * w, 3, 2, 1), slope]
            places, n = (height // 4, width // 4), 2 * w
            while max(places) > 4 or places == (height // 4, width // 4):
                layers += [nn.Conv2d(n, 2 * w, 3, 2, 1), slope]
                places = (-(-places[0] // 2), -(-places[1] // 2))
            layers += [nn.Flatten(), nn.Linear(2 * w * places[0] * places[1], 1)]
        else:
            blocks, hidden = {"published": (((16, 16, 16), (32, 32), (64, 64)), (1024,)),
                              "domain": (((16, 16, 32), (32, 32), (64, 64)), (25,))}[config.discriminator]
            layers, n = [], channels
            for block in blocks:
                for m in block:
                    layers += [nn.Conv2d(n, m, 3, padding=1), nn.ELU()]
                    n = m
                layers.append(nn.MaxPool2d(2))
            layers.append(nn.Flatten())
            n *= (height // 8) * (width // 8)
            for m in hidden:
                layers += [nn.Linear(n, m), nn.ELU()]
                n = m
            layers.append(nn.Linear(n, 1))
        if config.spectral:
            layers = [spectral_norm(layer) if isinstance(layer, (nn.Conv2d, nn.Linear)) else layer for layer in layers]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x - 0.5).squeeze(1)


EXPERTS: dict[str, type[nn.Module]] = {"residual": ResidualExpert, "cnn": ConvExpert, "vae": VAEExpert}


def check_shape(shape: Shape) -> None:
    """Raises UserError for images whose sides experts cannot halve twice."""
    channels, height, width = shape
    if channels not in (1, 3) or height % _SIDES or width % _SIDES or min(height, width) < 8:
        raise UserError(f"images of {channels} channels and {height} × {width} pixels do not suit experts: 1 or 3 channels, and sides of "
                        "at least 8 that are multiples of 4, are needed; resize or pad them (unpaired-folders: --option size=64)")

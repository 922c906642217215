"""The image mechanism: a hierarchical VAE whose latents and pixel residual are the image's exogenous noise.

p(x | pa) = ∫ p(x | z, pa) Π_i p(z_i) dz, with z from coarse to fine resolution (Child 2021, *Very deep VAEs*; De Sousa
Ribeiro et al. 2023, *High fidelity image counterfactuals*). Every level's prior is a standard normal: the latents are
independent of the parents by construction, so that they belong to the image's noise and stay fixed under an
intervention. Parents enter the decoder only — its features, where they may act in any way, and its read-out, where
they act linearly (:class:`mechanisms.readout.BilinearReadout`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.schema import Graph, encode_parents
from mechanisms.likelihood import DiscretizedGaussian, kl_to_standard_normal, soft_bound

Normal = Callable[..., Tensor]  # normal(*shape) → standard normal noise of this shape


@dataclass(frozen=True)
class HVAEConfig:
    """Topology and capacity.

    A topology is a comma-separated list of ``<resolution>b<blocks>[d<pooling>]``: ``8b2d2`` is two residual blocks at
    8×8, then average pooling by 2. Resolutions are those after the image is folded ``patch`` times into channels.
    """

    encoder: str = "8b2d2,4b2d4,1b1"
    decoder: str = "1b1,4b3,8b4"
    widths: str = "8:128,4:192,1:256"
    patch: int = 4
    z_dim: int = 16
    bases: int = 4
    parent_width: int = 64


PRESETS: dict[str, HVAEConfig] = {
    "cpu": HVAEConfig(),
    # De Sousa Ribeiro et al. 2023, Morpho-MNIST: all blocks at full resolution; ten times slower on processors.
    "reference": HVAEConfig(encoder="32b3d2,16b3d2,8b3d2,4b3d4,1b4", decoder="1b4,4b4,8b4,16b4,32b4",
                            widths="32:16,16:32,8:64,4:128,1:256", patch=1),
}


def parse_topology(text: str) -> list[tuple[int, int]]:
    """``"8b2d2,4b1"`` → ``[(8, 2), (4, 1)]``: resolution and number of blocks of each stage.

    Raises:
        ValueError: for a malformed stage, or a pooling that does not lead to the next stage's resolution.
    """
    stages, pooled = [], None
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)b(\d+)(?:d(\d+))?", part)
        if not match:
            raise ValueError(f"topology {text!r}: {part!r} is not <resolution>b<blocks>[d<pooling>], for instance 8b2d2")
        resolution, blocks = int(match[1]), int(match[2])
        if pooled not in (None, resolution):
            raise ValueError(f"topology {text!r}: pooling leads to resolution {pooled}, but the next stage says {resolution}")
        pooled = resolution // int(match[3]) if match[3] else None
        stages.append((resolution, blocks))
    return stages


class ResidualBlock(nn.Module):
    """h + conv(act(conv(act(h)) ⊙ (1 + scale(e)) + shift(e))): two convolutions, modulated by the parents' embedding."""

    def __init__(self, width: int, kernel: int, embedding: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.modulation = nn.Linear(embedding, 2 * width) if embedding else None

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        inner = self.first(F.silu(h))
        if self.modulation is not None:
            scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
            inner = inner * (1 + scale) + shift
        return h + self.second(F.silu(inner))


class StochasticBlock(nn.Module):
    """One level of latents: q(z | z_<, x, pa), prior N(0, 1), then h ← h + project(z), then a residual block."""

    def __init__(self, width: int, kernel: int, z_dim: int, embedding: int) -> None:
        super().__init__()
        self.posterior_in = nn.Conv2d(2 * width, width, kernel, padding=kernel // 2)
        self.posterior_parents = nn.Linear(embedding, width)
        self.posterior_out = nn.Conv2d(width, 2 * z_dim, 1)
        self.project = nn.Conv2d(z_dim, width, 1)
        self.block = ResidualBlock(width, kernel, embedding)

    def posterior(self, h: Tensor, activation: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.posterior_in(F.silu(torch.cat([h, activation], 1))) + self.posterior_parents(embedding)[:, :, None, None]
        loc, log_scale = self.posterior_out(F.silu(inner)).float().chunk(2, 1)
        return loc, soft_bound(log_scale, -6.0, 1.0)

    def forward(self, h: Tensor, z: Tensor, embedding: Tensor) -> Tensor:
        return self.block(h + self.project(z), embedding)


class HVAE(nn.Module):
    def __init__(self, graph: Graph, config: HVAEConfig = HVAEConfig()) -> None:
        super().__init__()
        self.graph, self.config = graph, config
        self.parents = graph.image_parents
        channels, self.height, self.width = graph.image.shape
        pa = sum(v.width for v in self.parents)
        widths = {int(k): int(v) for k, v in (p.split(":") for p in config.widths.split(","))}
        self.encoder_stages, self.decoder_stages = parse_topology(config.encoder), parse_topology(config.decoder)
        p, e = config.patch, config.parent_width
        top = self.encoder_stages[0][0]
        self.embed = nn.Sequential(nn.Linear(pa, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.stem = nn.Conv2d(channels * p * p, widths[top], 3, padding=1)
        self.encoder = nn.ModuleList()
        self.reduce = nn.ModuleList()
        for k, (r, n) in enumerate(self.encoder_stages):
            self.encoder.append(nn.ModuleList(ResidualBlock(widths[r], 3 if r > 2 else 1) for _ in range(n)))
            self.reduce.append(nn.Conv2d(widths[r], widths[self.encoder_stages[k + 1][0]], 1) if k + 1 < len(self.encoder_stages) else nn.Identity())
        self.decoder = nn.ModuleList()
        self.expand = nn.ModuleList()
        self.bias = nn.ParameterList()
        for k, (r, n) in enumerate(self.decoder_stages):
            self.decoder.append(nn.ModuleList(StochasticBlock(widths[r], 3 if r > 2 else 1, config.z_dim, e) for _ in range(n)))
            before = widths[self.decoder_stages[k - 1][0]] if k else widths[r]
            self.expand.append(nn.Conv2d(before, widths[r], 1) if before != widths[r] else nn.Identity())
            self.bias.append(nn.Parameter(torch.zeros(1, widths[r], r, r)))
        final = widths[self.decoder_stages[-1][0]]
        self.readout = BilinearReadout(final, pa, channels, config.bases, p)
        blocks = sum(n for _, n in self.decoder_stages)
        for m in self.modules():
            if isinstance(m, ResidualBlock):
                m.second.weight.data.mul_(blocks ** -0.5)
                if m.modulation is not None:
                    m.modulation.weight.data.mul_(0.5); nn.init.zeros_(m.modulation.bias)
            if isinstance(m, StochasticBlock):
                m.project.weight.data.mul_(blocks ** -0.5)
                m.posterior_out.weight.data.mul_(0.3); nn.init.zeros_(m.posterior_out.bias)
        self.to(memory_format=torch.channels_last)

    def encode(self, x):
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        acts = {}
        for k, (r, n) in enumerate(self.encoder_stages):
            for b in self.encoder[k]:
                h = b(h)
            acts[r] = h
            if k + 1 < len(self.encoder_stages):
                h = self.reduce[k](F.adaptive_avg_pool2d(h, self.encoder_stages[k + 1][0]))
        return acts

    def decode(self, e, batch, choose):
        h = None
        for k, (r, n) in enumerate(self.decoder_stages):
            if h is None:
                h = self.bias[0].expand(batch, -1, -1, -1)
            else:
                h = self.expand[k](F.interpolate(h, size=(r, r))) + self.bias[k]
            for b in self.decoder[k]:
                z = choose(b, h, r)
                h = b(h, z, e)
        return h

    def forward(self, x, pa, normal, beta=1.0):
        x = x * 2 - 1
        e = self.embed(pa)
        acts = self.encode(x)
        kl = 0
        def choose(b, h, r):
            nonlocal kl
            loc, ls = b.posterior(h, acts[r], e)
            z = loc + torch.exp(ls) * normal(*loc.shape) if normal else loc
            kl = kl + kl_to_standard_normal(loc, ls).sum((1, 2, 3))
            return z
        h = self.decode(e, len(x), choose)
        lik = self.readout(h, pa)
        nll = -lik.log_prob(x).sum((1, 2, 3))
        return nll, kl

    @torch.no_grad()
    def abduct(self, x, pa, normal=None):
        x = x * 2 - 1
        e = self.embed(pa); acts = self.encode(x); zs = []
        def choose(b, h, r):
            loc, ls = b.posterior(h, acts[r], e)
            z = loc if normal is None else loc + torch.exp(ls) * normal(*loc.shape)
            zs.append(z); return z
        h = self.decode(e, len(x), choose)
        lik = self.readout(h, pa)
        return zs, lik.standardize(x)

    @torch.no_grad()
    def predict(self, zs, u, pa, temperature=1.0):
        it = iter(zs)
        h = self.decode(self.embed(pa), len(pa), lambda b, h, r: next(it))
        return (self.readout(h, pa).place(u, temperature) + 1) / 2


class BilinearReadout(nn.Module):
    def __init__(self, width, pa, channels, bases, patch):
        super().__init__()
        self.c, self.k, self.p = channels, bases, patch
        self.conv = nn.Conv2d(width, (bases + channels) * patch * patch, 3, padding=1)
        self.mix = nn.Linear(pa, channels * bases)
        self.scale = nn.Linear(pa, channels)
        nn.init.zeros_(self.conv.bias)
        nn.init.normal_(self.mix.weight, std=0.05)
        with torch.no_grad():
            self.mix.bias.zero_(); self.mix.bias.view(channels, bases)[:, 0] = 1.0
        nn.init.zeros_(self.scale.weight); nn.init.constant_(self.scale.bias, -2.0)

    def forward(self, h, pa):
        maps = F.pixel_shuffle(self.conv(F.silu(h)), self.p).float()
        basis, ls = maps[:, :self.k], maps[:, self.k:]
        mix = self.mix(pa).float().view(-1, self.c, self.k)
        loc = 2 * torch.einsum('bck,bkhw->bchw', mix, torch.sigmoid(basis)) - 1
        return DiscretizedGaussian(loc, soft_bound(ls + self.scale(pa)[:, :, None, None].float(), -9, 1))

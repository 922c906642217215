"""The image mechanism: a hierarchical VAE whose latents and pixel residual are the image's exogenous noise.

p(x | pa) = ∫ p(x | z, pa) Π_i p(z_i) dz, with z from coarse to fine resolution (Child 2021, *Very deep VAEs*; De Sousa
Ribeiro et al. 2023, *High fidelity image counterfactuals with probabilistic causal models*). The prior of every level
is a standard normal: latents are independent of the parents by construction, so that they belong to the image's noise
and stay what they are under an intervention. Parents enter the decoder at two places: its features, where they may act
in any way, and its read-out, where they act linearly.

Collinear parents enter the read-out only. Where one parent of the image all but determines another (thickness and
intensity of Morpho-MNIST correlate at .9), the features never see them vary apart: an intervention on the effect alone
asks for a pair outside the training data, and a network extrapolates there as it likes. A linear map extrapolates
linearly. So the cause keeps the features, and its effect acts linearly. L1 to the true image, of 255 over 32² pixels,
after 1,500 of 6,000 updates on 8,000 images (copying: 9.26 and 5.62): do(intensity) 0.50 instead of 1.60, do(thickness)
1.90 instead of 1.96; after 6,000 updates of the latter design do(intensity) was still 1.59. The bound is *worse*, 0.752
instead of 0.746 nats/dim. What helped less or not at all: a price in nats on what reaches the features (z swallowed the
thickness), additive embeddings of parents (nothing), importance weights towards independent parents, or a read-out that
learns faster than the features (each about a third of the way).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.errors import UserError
from datasets.schema import Graph, encode_parents
from mechanisms.hvae_options import HVAEConfig
from mechanisms.likelihood import DiscretizedGaussian, kl_to_standard_normal, soft_bound
from mechanisms.readout import BilinearReadout
from mechanisms.topology import default_topology, parse_topology, parse_widths

Draw = Callable[..., Tensor]  # draw(rows, *shape) → standard normals, for instance a mechanisms.noise.Noise


@dataclass(frozen=True)
class ImageNoise:
    """The exogenous noise of images: latents ``(B, z_dim, r, r)`` from coarse to fine, pixel residual ``(B, C, H, W)``."""

    latents: tuple[Tensor, ...]
    residual: Tensor

    def __len__(self) -> int:
        return len(self.residual)


class ResidualBlock(nn.Module):
    """h + conv(act((1 + scale(e)) ⊙ conv(act(h)) + shift(e))): two convolutions, modulated by the parents' embedding e."""

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


class LatentBlock(nn.Module):
    """One level: q(z_i | z_<i, x, pa) = N(loc, e^{2·log_scale}); h ← block(h + project(z_i); pa). Prior: N(0, 1)."""

    def __init__(self, width: int, kernel: int, z_dim: int, embedding: int) -> None:
        super().__init__()
        self.posterior_in = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.posterior_parents = nn.Linear(embedding, width)
        self.posterior_out = nn.Conv2d(width, 2 * z_dim, 1)
        self.project = nn.Conv2d(z_dim, width, 1)
        self.block = ResidualBlock(width, kernel, embedding)

    def posterior(self, h: Tensor, activation: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q, ``(B, z_dim, r, r)`` each."""
        inner = self.posterior_in(F.silu(h + activation)) + self.posterior_parents(embedding)[:, :, None, None]
        loc, log_scale = self.posterior_out(F.silu(inner)).float().chunk(2, 1)
        return loc, soft_bound(log_scale, -6.0, 1.0)

    def forward(self, h: Tensor, z: Tensor, embedding: Tensor) -> Tensor:
        return self.block(h + self.project(z), embedding)


class HVAE(nn.Module):
    """Hierarchical VAE with exogenous prior, for images of any size and number of channels.

    Args:
        graph: with statistics of the training split; the image's parents are taken from it by name.
        config: topology; ``auto`` derives it from the image's size.

    Raises:
        UserError: for a topology that does not fit the image.
    """

    def __init__(self, graph: Graph, config: HVAEConfig | None = None) -> None:
        super().__init__()
        self.graph, self.config = graph, config or HVAEConfig()
        self.parents = graph.image_parents
        channels, *size = graph.image.shape
        patch, embedding = self.config.patch, self.config.embedding
        self.acting = tuple(v for v in self.parents if v.statistics.explained <= self.config.collinear)
        columns, acting = sum(v.width for v in self.parents), sum(v.width for v in self.acting)
        for name in ("patch", "z_dim", "bases", "embedding"):
            if getattr(self.config, name) < 1:
                raise UserError(f"{name}={getattr(self.config, name)} must be at least 1")
        if size[0] != size[1] or size[0] % patch:
            raise UserError(f"images are {size[0]}×{size[1]}: the HVAE takes square ones whose side is a multiple of patch={patch}")
        defaults = default_topology(size[0] // patch)
        given = (self.config.encoder, self.config.decoder, self.config.widths)
        encoder, decoder, widths = (d if g == "auto" else g for g, d in zip(given, defaults, strict=True))
        self.encoder_stages, self.decoder_stages = parse_topology(encoder), parse_topology(decoder)
        width = parse_widths(widths, self.encoder_stages, self.decoder_stages, size[0] // patch)
        fine, coarse = [r for r, _ in self.encoder_stages], [r for r, _ in self.decoder_stages]
        if fine != sorted(fine, reverse=True) or coarse != sorted(coarse):
            raise UserError(f"an encoder goes from fine to coarse and a decoder back, not {encoder} and {decoder}")

        self.embed = nn.Sequential(nn.Linear(acting, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(channels * patch * patch, width[fine[0]], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width[r], _kernel(r)) for _ in range(n)) for r, n in self.encoder_stages)
        self.down = nn.ModuleList(
            nn.Conv2d(width[a], width[b], a // b, stride=a // b) for a, b in zip(fine, fine[1:], strict=False))
        self.decoder = nn.ModuleList(
            nn.ModuleList(LatentBlock(width[r], _kernel(r), self.config.z_dim, embedding) for _ in range(n))
            for r, n in self.decoder_stages)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width[a], width[b], b // a, stride=b // a) for a, b in zip(coarse, coarse[1:], strict=False))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(1, width[r], r, r)) for r in coarse)
        self.readout = BilinearReadout(width[coarse[-1]], columns, channels, self.config.bases, patch)
        self._initialize()
        self.to(memory_format=torch.channels_last)

    def _initialize(self) -> None:
        """Residual branches and projections scaled by 1/√levels (Child 2021, §3.1); posteriors start near the prior."""
        shrink = sum(n for _, n in self.decoder_stages) ** -0.5
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.second.weight.mul_(shrink)
                elif isinstance(module, LatentBlock):
                    module.project.weight.mul_(shrink)
                    module.posterior_out.weight.mul_(0.3)
                    module.posterior_out.bias.zero_()

    # ------------------------------------------------------------------------------------------------ both directions
    def _encode(self, x: Tensor) -> dict[int, Tensor]:
        """Activations at each resolution, of pixels in [-1, 1]."""
        h, activations = self.stem(F.pixel_unshuffle(x, self.config.patch)), {}
        for k, (resolution, _) in enumerate(self.encoder_stages):
            for block in self.encoder[k]:
                h = block(h)
            activations[resolution] = h
            if k < len(self.down):
                h = self.down[k](F.silu(h))
        return activations

    def _decode(self, parents: Mapping[str, Tensor], rows: int,
                choose: Callable[[LatentBlock, Tensor, Tensor, int], Tensor]) -> DiscretizedGaussian:
        """Top-down pass; ``choose(level, h, embedding, resolution)`` gives each level's latents."""
        device = self.stem.weight.device
        embedding = self.embed(encode_parents(self.acting, parents, rows, device))
        h = self.bias[0].expand(rows, -1, -1, -1)
        for k, (resolution, _) in enumerate(self.decoder_stages):
            if k:
                h = self.up[k - 1](F.silu(h)) + self.bias[k]
            for level in self.decoder[k]:
                h = level(h, choose(level, h, embedding, resolution), embedding)
        return self.readout(h, encode_parents(self.parents, parents, rows, device))

    def _infer(self, x: Tensor, parents: Mapping[str, Tensor],
               draw: Draw | None) -> tuple[DiscretizedGaussian, list[Tensor], list[Tensor]]:
        """p(x | z, pa), the latents and each level's KL ``(B,)``; z drawn from q, or its mean if ``draw`` is None."""
        activations, latents, rates = self._encode(x), [], []

        def choose(level: LatentBlock, h: Tensor, embedding: Tensor, resolution: int) -> Tensor:
            loc, log_scale = level.posterior(h, activations[resolution], embedding)
            z = loc if draw is None else loc + torch.exp(log_scale) * draw(*loc.shape)
            latents.append(z)
            rates.append(kl_to_standard_normal(loc, log_scale).sum((1, 2, 3)))
            return z

        return self._decode(parents, len(x), choose), latents, rates

    # ------------------------------------------------------------------------------------------------ training
    def forward(self, batch: Mapping[str, Tensor], noise: Draw, progress: float = 1.0) -> dict[str, Tensor]:
        """Free energy −log p(x|z,pa) + KL(q‖p), nats per image, ``(B,)``: ``loss`` is what is minimised at this progress.

        Args:
            batch: attributes in physical units and ``image``, float in [0, 1], ``(B, C, H, W)``.
            noise: draws standard normals.
            progress: share of the training that is done; β rises with it.
        """
        x = batch["image"] * 2 - 1
        likelihood, _, rates = self._infer(x, batch, noise)
        distortion, rate = -likelihood.log_prob(x).sum((1, 2, 3)), torch.stack(rates).sum(0)
        warm = min(1.0, progress / self.config.beta_warmup) if self.config.beta_warmup else 1.0
        charged = torch.stack(rates).clamp(min=self.config.free_bits).sum(0) if self.config.free_bits else rate
        return {"loss": distortion + self.config.beta * warm * charged, "free_energy": distortion + rate,
                "distortion": distortion, "rate": rate}

    # ------------------------------------------------------------------------------------------------ the three steps
    @torch.no_grad()
    def abduct(self, images: Tensor, parents: Mapping[str, Tensor], draw: Draw | None = None) -> ImageNoise:
        """u ~ p(u | x, pa): latents from q(z | x, pa) — its mean without ``draw`` — and residual (x − μ)/σ.

        Args:
            images: float in [0, 1], ``(B, C, H, W)``.
            parents: attributes in physical units, ``(B,)`` each; only the image's parents are read.
        """
        x = images * 2 - 1
        likelihood, latents, _ = self._infer(x, parents, draw)
        return ImageNoise(tuple(latents), likelihood.standardize(x))

    @torch.no_grad()
    def predict(self, noise: ImageNoise, parents: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """x = μ(z, pa) + temperature·σ(z, pa)·u, ``(B, C, H, W)`` in [0, 1]."""
        latents = iter(noise.latents)
        likelihood = self._decode(parents, len(noise), lambda *_: next(latents))
        return (likelihood.place(noise.residual, temperature) + 1) / 2

    def draw_noise(self, rows: int, draw: Draw) -> ImageNoise:
        """u ~ p(u): standard normal latents and residual; they never see a parent."""
        latents = tuple(draw(rows, self.config.z_dim, r, r) for r, n in self.decoder_stages for _ in range(n))
        return ImageNoise(latents, draw(rows, *self.graph.image.shape))

    @torch.no_grad()
    def free_energy(self, images: Tensor, parents: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """An upper bound of −log p(x | pa), one draw of z, nats per image, ``(B,)``."""
        return self({**parents, "image": images}, draw)["free_energy"]


def _kernel(resolution: int) -> int:
    return 3 if resolution > 2 else 1

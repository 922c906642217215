"""What all image mechanisms share: the image's exogenous noise, the objective, and abduct, act, predict.

p(x | pa) = ∫ p(x | z, pa) Π_i p(z_i | z_<i, pa) dz, with levels of latents z_i from coarse to fine. Parents enter the
decoder at two places: its features, where they may act in any way, and its read-out, where they act linearly.

**Exogenous prior.** Every level's prior is a standard normal: latents are independent of the parents by construction,
so that they belong to the image's noise and stay what they are under an intervention.

**Mediator.** p(z_i | z_<i, pa) = N(μ_i, σ_i²) is learned, and z lies on the path from the parents to the image (De Sousa
Ribeiro et al. 2023, *High fidelity image counterfactuals with probabilistic causal models*, §3). A level's exogenous noise is
ε_i = (z_i − μ_i)/σ_i. Under an intervention each level moves from the observed value towards what its noise makes in
the other world, by the share π (``mixing``), on the way down, so that each prior sees the moved levels above it:

    z*_i = (1 − π)·z_i + π·(μ_i(z*_<i, pa*) + σ_i(z*_<i, pa*)·ε_i)

π = 1 is Pearl's counterfactual of the mediator, π = 0 keeps z, and pa* = pa gives z* = z whatever π. Conditioning the
prior on an unrelated sample instead would add noise that differs at each call. L1 to the true do(thickness) image of
Morpho-MNIST is 5.53, 3.90 and 2.22 of 255 at π = 0, ½ and 1 (HVAE, 1,000 updates of 16 images), hence the default 1.
*Total* effect: x from (z*, pa*); *direct*: from (z, pa*), what the parents do past the latents; *indirect*: from (z*, pa),
what they do through them.

**Collinear parents enter the read-out only.** Where one parent of the image all but determines another (thickness and
intensity of Morpho-MNIST correlate at .9), the features never see them vary apart: an intervention on the effect alone
asks for a pair outside the training data, and a network extrapolates there as it likes. A linear map extrapolates
linearly. So the cause keeps the features, and its effect acts linearly. L1 to the true image, of 255 over 32² pixels,
after 1,500 of 6,000 updates on 8,000 images (copying: 9.26 and 5.62): do(intensity) 0.50 instead of 1.60, do(thickness)
1.90 instead of 1.96; after 6,000 updates of the latter design do(intensity) was still 1.59. The bound is *worse*, 0.752
instead of 0.746 nats/dim. What helped less or not at all: a price in nats on what reaches the features (z swallowed the
thickness), additive embeddings of parents (nothing), importance weights towards independent parents, or a read-out that
learns faster than the features (each about a third of the way). A mediator's prior is one more network of the parents,
and the same holds for it: where it saw all of them, do(intensity) was 1.95 instead of 0.59 and do(thickness) 2.25 instead
of 2.22 after 1,000 updates. So an effect that is kept out of the features has no path through z either.
Classes can be collinear too: where the digit tells the hue with probability .95 (Colour-MNIST, RGB), a feature network that
sees the hue draws the digit that goes with it, and do(hue) of six images erred by 4.4 of 255 on average after 3,000
updates (copying: 9.6); with the hue in the read-out only, by 0.4 after 2,000.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.errors import UserError
from datasets.schema import Graph, encode_parents
from mechanisms.image.blocks import LatentBlock, Normal, ResidualBlock, kernel_size
from mechanisms.image.config import ImageConfig
from mechanisms.image.noise import Factual, ImageNoise
from mechanisms.image.readout import make_readout
from mechanisms.image.topology import default_topology, parse_topology, parse_widths

Draw = Callable[..., Tensor]  # draw(rows, *shape) → standard normals, for instance a mechanisms.training.noise.Noise
Level = tuple[Tensor, Normal, Normal]  # z_i with its posterior and its prior
Effect = Literal["total", "direct", "indirect"]


class ImageMechanism(nn.Module):
    """An encoder of residual blocks, a decoder with levels of latents, a read-out; for square images of any size.

    Subclasses say which of the decoder's blocks are levels of latents, see :meth:`latent`. Nothing here stops gradients:
    abduction and prediction are differentiable in weights, images and continuous parents.

    Args:
        graph: with statistics of the training split; the image's parents are taken from it by name.
        config: topology, prior and likelihood; ``auto`` derives the topology from the image's size.

    Raises:
        UserError: for a configuration that makes no sense or does not fit the image.
    """

    def __init__(self, graph: Graph, config: ImageConfig | None = None) -> None:
        super().__init__()
        self.graph, self.config = graph, config or ImageConfig()
        self.config.check()
        self.parents = graph.image_parents
        channels, *size = graph.image.shape
        patch, embedding = self.config.patch, self.config.embedding
        self.acting = tuple(v for v in self.parents if v.statistics.explained <= self.config.collinear)
        columns, acting = sum(v.width for v in self.parents), sum(v.width for v in self.acting)
        if size[0] != size[1] or size[0] % patch:
            raise UserError(f"images are {size[0]}×{size[1]}: the {type(self).__name__} takes square ones whose side is a multiple "
                            f"of patch={patch}")
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
            nn.ModuleList(ResidualBlock(width[r], kernel_size(r)) for _ in range(n)) for r, n in self.encoder_stages)
        self.down = nn.ModuleList(
            nn.Conv2d(width[a], width[b], a // b, stride=a // b) for a, b in zip(fine, fine[1:], strict=False))
        self.decoder = nn.ModuleList(
            nn.ModuleList(self._block(width[r], r, self.latent(stage, k)) for k in range(n))
            for stage, (r, n) in enumerate(self.decoder_stages))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width[a], width[b], b // a, stride=b // a) for a, b in zip(coarse, coarse[1:], strict=False))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(1, width[r], r, r)) for r in coarse)
        self.readout = make_readout(self.config, width[coarse[-1]], columns, channels)
        self._initialize()
        self.to(memory_format=torch.channels_last)

    def latent(self, stage: int, block: int) -> bool:
        """Whether this block of the decoder is a level of latents; otherwise it is a residual block."""
        raise NotImplementedError

    def _block(self, width: int, resolution: int, latent: bool) -> nn.Module:
        kernel, embedding = kernel_size(resolution), self.config.embedding
        if latent:
            return LatentBlock(width, kernel, self.config.z_dim, embedding, self.mediator)
        return ResidualBlock(width, kernel, embedding)

    def _initialize(self) -> None:
        """Residual branches and projections scaled by 1/√blocks (Child 2021, §3.1); posteriors start near the prior."""
        shrink = sum(n for _, n in self.decoder_stages) ** -0.5
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.second.weight.mul_(shrink)
                elif isinstance(module, LatentBlock):
                    module.project.weight.mul_(shrink)
                    module.posterior_out.weight.mul_(0.3)
                    module.posterior_out.bias.zero_()

    @property
    def mediator(self) -> bool:
        """Whether the latents lie between the parents and the image."""
        return self.config.prior == "mediator"

    @property
    def levels(self) -> tuple[int, ...]:
        """Resolution of each level of latents, from coarse to fine."""
        return tuple(r for k, (r, n) in enumerate(self.decoder_stages) for j in range(n) if self.latent(k, j))

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

    def _descend(self, parents: Tensor, choose: Callable[[LatentBlock, Tensor, Tensor, int], Tensor]) -> Tensor:
        """Features ``(B, width, H/patch, W/patch)`` under encoded parents; ``choose(level, h, embedding, resolution)`` gives z_i."""
        columns = zip(self.parents, parents.split([v.width for v in self.parents], 1), strict=True)
        embedding = self.embed(torch.cat([parents[:, :0], *(column for v, column in columns if v in self.acting)], 1))
        h = self.bias[0].expand(len(parents), -1, -1, -1)
        for k, (resolution, _) in enumerate(self.decoder_stages):
            if k:
                h = self.up[k - 1](F.silu(h)) + self.bias[k]
            for block in self.decoder[k]:
                latent = isinstance(block, LatentBlock)
                h = block(h, choose(block, h, embedding, resolution), embedding) if latent else block(h, embedding)
        return h

    def _infer(self, x: Tensor, parents: Tensor, draw: Draw | None, draws: int = 1) -> tuple[Tensor, list[Level]]:
        """Features, and each level's value with its posterior q and prior p; z drawn from q, or its mean without ``draw``.

        ``x (B, …)`` is encoded once and its activations are repeated; ``parents`` and all results have draws·B rows.
        """
        activations, levels = self._encode(x), []
        if draws > 1:
            activations = {r: a.repeat(draws, 1, 1, 1) for r, a in activations.items()}

        def choose(level: LatentBlock, h: Tensor, embedding: Tensor, resolution: int) -> Tensor:
            q, p = level.posterior(h, activations[resolution], embedding), level.prior(h, embedding)
            z = q.loc if draw is None else q.place(draw(*q.loc.shape))
            levels.append((z, q, p))
            return z

        return self._descend(parents, choose), levels

    def _encode_parents(self, parents: Mapping[str, Tensor], rows: int) -> Tensor:
        return encode_parents(self.parents, parents, rows, self.stem.weight.device)

    # ------------------------------------------------------------------------------------------------ training
    def forward(self, batch: Mapping[str, Tensor], noise: Draw, progress: float = 1.0) -> dict[str, Tensor]:
        """Free energy −log p(x|z,pa) + KL(q‖p), nats per image, ``(B,)``: ``loss`` is what is minimised at this progress.

        Args:
            batch: attributes in physical units and ``image``, float in [0, 1], ``(B, C, H, W)``.
            noise: draws standard normals.
            progress: share of the training that is done; β rises with it.
        """
        x = batch["image"] * 2 - 1
        parents = self._encode_parents(batch, len(x))
        h, levels = self._infer(x, parents, noise)
        rates = _rates(levels)
        distortion, rate = -self.readout(h, parents).log_prob(x).sum((1, 2, 3)), rates.sum(0)
        warm = min(1.0, progress / self.config.beta_warmup) if self.config.beta_warmup else 1.0
        charged = rates.clamp(min=self.config.free_bits).sum(0) if self.config.free_bits else rate
        return {"loss": distortion + self.config.beta * warm * charged, "free_energy": distortion + rate,
                "distortion": distortion, "rate": rate}

    # ------------------------------------------------------------------------------------------------ the three steps
    def abduct(self, images: Tensor, parents: Mapping[str, Tensor], draw: Draw | None = None, draws: int = 1) -> ImageNoise:
        """u ~ p(u | x, pa): latents from q(z | x, pa), as noise of their prior, and the pixels' residual given z.

        Args:
            images: float in [0, 1], ``(B, C, H, W)``.
            parents: attributes in physical units, ``(B,)`` each; only the image's parents are read.
            draw: draws standard normals; without it the latents are q's mean.
            draws: how many of each image, in one pass of the encoder: draw k of image b is row k·B + b.

        Raises:
            UserError: for fewer than one draw.
        """
        if draws < 1:
            raise UserError(f"draws={draws} must be at least 1")
        x = images * 2 - 1
        encoded = self._encode_parents(parents, len(x)).repeat(draws, 1)
        h, levels = self._infer(x, encoded, draw, draws)
        return self._noise(levels, self.readout(h, encoded).standardize(x.repeat(draws, 1, 1, 1)), encoded)

    def bound_and_noise(self, batch: Mapping[str, Tensor], draw: Draw) -> tuple[Tensor, ImageNoise]:
        """:meth:`free_energy` and :meth:`abduct` at the very latents that it was computed with, in one pass."""
        x = batch["image"] * 2 - 1
        encoded = self._encode_parents(batch, len(x))
        h, levels = self._infer(x, encoded, draw)
        likelihood = self.readout(h, encoded)
        return _rates(levels).sum(0) - likelihood.log_prob(x).sum((1, 2, 3)), self._noise(levels, likelihood.standardize(x), encoded)

    def _noise(self, levels: Sequence[Level], residual: Tensor, parents: Tensor) -> ImageNoise:
        values = tuple(z for z, _, _ in levels) if self.mediator else ()
        return ImageNoise(tuple(p.standardize(z) for z, _, p in levels), residual, Factual(values, parents))

    def predict(self, noise: ImageNoise, parents: Mapping[str, Tensor], temperature: float = 1.0,
                effect: Effect = "total") -> Tensor:
        """x = μ(z*, pa*) + temperature·σ(z*, pa*)·u, or what the likelihood has in its place, ``(B, C, H, W)`` in [0, 1].

        Law: ``predict(abduct(x, pa), pa) == x`` at temperature 1, for every effect.

        Args:
            noise: abducted or drawn.
            parents: pa*, in physical units.
            temperature: of the residual.
            effect: of the change of parents, see the head of this module. Noise with an exogenous prior lets the parents
                act directly only.

        Raises:
            UserError: for an unknown effect, or a part of it that drawn noise does not have.
        """
        if effect not in get_args(Effect):
            raise UserError(f"unknown effect {effect!r}; valid are {', '.join(get_args(Effect))}")
        if effect != "total" and noise.factual is None:
            raise UserError(f"the {effect} effect is a change from an observed world; drawn noise has none: abduct it from images")
        encoded = self._encode_parents(parents, len(noise))
        shown = noise.factual.parents if effect == "indirect" else encoded
        if effect == "total":
            h, _ = self._act(noise, encoded)
        else:
            values = self._act(noise, encoded)[1] if effect == "indirect" else noise.factual.values or noise.latents
            level = iter(values)
            h = self._descend(shown, lambda *_: next(level))
        return (self.readout(h, shown).place(noise.residual, temperature) + 1) / 2

    def _act(self, noise: ImageNoise, parents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and levels z* in the world with these encoded parents."""
        latents, values = iter(noise.latents), []
        kept = iter(noise.factual.values if noise.factual else ())

        def choose(level: LatentBlock, h: Tensor, embedding: Tensor, resolution: int) -> Tensor:
            z = level.prior(h, embedding).place(next(latents))
            if (observed := next(kept, None)) is not None:
                z = torch.lerp(observed, z, self.config.mixing)
            values.append(z)
            return z

        return self._descend(parents, choose), values

    def draw_noise(self, rows: int, draw: Draw) -> ImageNoise:
        """u ~ p(u): standard normal latents, and the residual; they never see a parent."""
        latents = tuple(draw(rows, self.config.z_dim, r, r) for r in self.levels)
        return ImageNoise(latents, self.readout.draw_residual(rows, self.graph.image.shape, draw))

    def free_energy(self, images: Tensor, parents: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """An upper bound of −log p(x | pa), one draw of z, nats per image, ``(B,)``."""
        return self({**parents, "image": images}, draw)["free_energy"]


def _rates(levels: Sequence[Level]) -> Tensor:
    """KL(q‖p) of each level, nats, ``(levels, B)``."""
    return torch.stack([q.divergence(p).sum((1, 2, 3)) for _, q, p in levels])

"""The supervised bound: a network trained on *true* pairs (x, pa, pa*) → x*, which no observational method ever sees.

It knows no causal model and no latents; it has been told the answers. What it errs on held-out images is about the
least that a network of this size can err in this time, so that the table shows how close each mechanism comes.
Only for data sets that know their own process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.base import CausalDataset, Split
from datasets.files.cache import cached
from datasets.ranges import AtLeastOne, Positive, Width, check_ranges
from datasets.schema import Graph, SchemaError, encode_parents
from dscm.capabilities import Capabilities
from dscm.evaluation.questions import draw_questions, fingerprint
from dscm.model import Counterfactual
from experiments.comparison.bounds import Truth
from mechanisms.image.blocks import ResidualBlock, kernel_size
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.loop import fit
from pgm.interventions import Do, resolve_do

FOLDER = "supervised"
RENDERINGS = 4  # true images of each training row under each variable's interventions
_SEED = 7_919  # of these interventions; those of the test split have other seeds
STAR = "*"  # marks what is true in the other world; no variable's name can hold it

Values = Mapping[str, Tensor]


# ------------------------------------------------------------------------------------------------ data
@dataclass(frozen=True)
class Pairs(Split):
    """Pairs of worlds of the same rows, as a split: ``name`` is what was observed and ``name*`` what would have been.

    Attributes:
        images, attributes: of W worlds of N rows, ``(W·N, …)``; world w of row n is w·N + n.
        links: ``(P, 2)``, from which world to which; item n·P + p is the pair p of row n.
        rows: N.
    """

    links: Tensor
    rows: int

    def __len__(self) -> int:
        return len(self.links) * self.rows

    def batch(self, index: Tensor | slice) -> dict[str, Tensor]:
        items = torch.arange(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index)
        worlds, rows = self.links[items % len(self.links)], items // len(self.links)
        observed, other = (Split.batch(self, worlds[:, k] * self.rows + rows) for k in (0, 1))
        return {**observed, **{name + STAR: value for name, value in other.items()}}


def true_pairs(dataset: CausalDataset, split: str, renderings: int = RENDERINGS) -> Pairs:
    """True pairs of all rows of a split, rendered once and cached.

    Worlds are the observation and, of each variable whose ``do`` has a true image, ``renderings`` interventions that are
    drawn as the questions are. A pair starts at a world that could have been observed — the observation, or one under an
    intervention on a variable without causes, whose value was drawn from its own marginal — and ends at any other.

    Raises:
        SchemaError: for a data set that does not know its own process.
    """
    rows = dataset.split(split)
    drawn = [q for r in range(renderings) for q in draw_questions(dataset, split, len(rows), _SEED + r).questions
             if dataset.has_truth([q.variable])]
    if not drawn:
        raise SchemaError(f"{dataset.title} does not know its own process: there are no true pairs to learn from")
    index = torch.arange(len(rows))

    def render() -> dict[str, np.ndarray]:
        worlds = []
        for question in drawn:
            world = dataset.true_counterfactual(split, index, question.do)
            worlds.append({**world, "image": (world["image"] * 255).round().to(torch.uint8)})
        return {name: torch.cat([world[name] for world in worlds]).numpy() for name in worlds[0]}

    key = {"split": split, "rows": fingerprint(rows, index), "renderings": renderings, "seed": _SEED,
           "variables": [q.variable for q in drawn]}
    rendered = {name: torch.from_numpy(array) for name, array in cached(f"{dataset.title}-pairs", key, render).items()}
    observed = rows.images if rows.in_memory else torch.stack([torch.as_tensor(rows.images[int(i)]) for i in index])
    sources = [0, *(k for k, q in enumerate(drawn, 1) if not dataset.graph.parents(q.variable))]
    links = torch.tensor([(a, b) for a in sources for b in range(len(drawn) + 1) if a != b])
    attributes = {name: torch.cat([values, rendered[name]]) for name, values in rows.attributes.items()}
    return Pairs(split, torch.cat([observed, rendered["image"]]), attributes, links, len(rows))


# ------------------------------------------------------------------------------------------------ network
@dataclass(frozen=True)
class PairConfig:
    """Size of the network, and how it is trained best: its own figures, not those of the image mechanisms."""

    patch: AtLeastOne[int] = 2
    """Pixels per side folded into channels."""
    widths: Width[tuple[int, ...]] = (48, 96, 128)
    """Channels at each resolution, each half of the one before."""
    blocks: AtLeastOne[int] = 1
    """Residual blocks at each resolution, on the way down and up."""
    embedding: Width[int] = 64
    """Width of the embedding of both worlds' parents."""
    batch_size: AtLeastOne[int] = 16
    learning_rate: Positive[float] = 2e-3


class PairNetwork(nn.Module):
    """x* = x·(1 + g) + h with gain g and change h ``(B, C, H, W)`` from a U-Net that sees x, pa and pa*.

    It starts as the identity. Images of any size; sides are padded to what halves often enough.
    """

    def __init__(self, graph: Graph, config: PairConfig | None = None) -> None:
        super().__init__()
        self.graph, self.config = graph, config or PairConfig()
        check_ranges(self.config)
        self.parents = graph.image_parents
        patch, widths, blocks, embedding = (getattr(self.config, n) for n in ("patch", "widths", "blocks", "embedding"))
        pixels = graph.image.shape[0] * patch**2
        smallest = min(graph.image.shape[1:]) // patch
        sizes = [max(1, smallest >> k) for k in range(len(widths))]
        columns = sum(v.width for v in self.parents)
        self.embed = nn.Sequential(nn.Linear(3 * columns, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        finer = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in finer)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in finer)
        self.encoder, self.decoder = (nn.ModuleList(
            nn.ModuleList(ResidualBlock(w, kernel_size(r), embedding) for _ in range(blocks)) for w, r in zip(widths, sizes, strict=True))
            for _ in range(2))
        self.head = nn.Conv2d(widths[0], 2 * pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                with torch.no_grad():
                    block.second.weight.mul_((2 * blocks * len(widths)) ** -0.5)
        self.to(memory_format=torch.channels_last)

    def change(self, images: Tensor, parents: Values, others: Values) -> Tensor:
        """x* before it is clamped, ``(B, C, H, W)``; ``parents`` are pa and ``others`` pa*, in physical units."""
        before, after = (encode_parents(self.parents, p, len(images), images.device) for p in (parents, others))
        embedding = self.embed(torch.cat([before, after, after - before], 1))
        size, step = images.shape[-2:], self.config.patch << len(self.down)
        padded = F.pad(images, (0, -size[1] % step, 0, -size[0] % step))
        h, kept = self.stem(F.pixel_unshuffle(padded, self.config.patch)), []
        for k, blocks in enumerate(self.encoder):
            for block in blocks:
                h = block(h, embedding)
            if k < len(self.down):
                kept.append(h)
                h = self.down[k](F.silu(h))
        for k in reversed(range(len(self.decoder))):
            for block in self.decoder[k]:
                h = block(h, embedding)
            if k:
                h = self.up[k - 1](F.silu(h)) + kept[k - 1]
        with torch.autocast(h.device.type, enabled=False):  # half precision is coarser than a grey level
            maps = F.pixel_shuffle(self.head(F.silu(h.float())), self.config.patch)[..., : size[0], : size[1]]
            gain, change = maps.chunk(2, 1)
            return images * (1 + gain) + change

    def forward(self, batch: Mapping[str, Tensor], noise: Any = None, progress: float = 1.0) -> dict[str, Tensor]:
        """Mean absolute error to the true image, of 255, ``(B,)``; ``batch`` is one of :class:`Pairs`."""
        others = {v.name: batch[v.name + STAR] for v in self.parents}
        error = self.change(batch["image"], batch, others) - batch["image" + STAR]
        return {"loss": error.abs().flatten(1).mean(1) * 255}


def train_supervised(dataset: CausalDataset, training: TrainingConfig, run: RunOptions, config: PairConfig | None = None,
                     renderings: int = RENDERINGS) -> PairNetwork:
    """Fit the network to the true pairs of the training split into ``run/supervised``, under the budget of ``training``.

    Rendering the pairs is not charged. Batches and learning rate are the network's own (``config``); an epoch is as many
    updates' images as the training split has.

    Raises:
        UserError: see :func:`true_pairs` and :func:`mechanisms.training.loop.fit`.
    """
    config = config or PairConfig()
    train, valid = true_pairs(dataset, "train", renderings), true_pairs(dataset, "valid", 1)
    training = replace(training, batch_size=config.batch_size, learning_rate=config.learning_rate,
                       epochs=training.epochs and training.epochs * train.rows / len(train))
    torch.manual_seed(training.seed)
    model = PairNetwork(dataset.graph, config)
    description = {"kind": FOLDER, "graph": dataset.graph.to_dict(), "config": asdict(config)}
    return fit(model, train, valid, training, Path(run.run) / FOLDER, description, run)


# ------------------------------------------------------------------------------------------------ answers
class Supervised:
    """The network as a model that is asked like a :class:`dscm.DSCM`: true parents from the process, the image from the network."""

    capabilities = Capabilities()

    def __init__(self, network: PairNetwork, truth: Truth) -> None:
        self.network, self.truth, self.graph = network.eval(), truth, truth.graph

    @property
    def device(self) -> torch.device:
        return self.network.stem.weight.device

    @torch.no_grad()
    def counterfactual(self, observed: Values, do: Do, *, generator: torch.Generator | None = None,
                       batch_size: int = 256) -> Counterfactual:
        """The image under ``do``, where the truth knows it; nothing is drawn."""
        observed = {name: torch.as_tensor(value).cpu() for name, value in observed.items()}
        rows = torch.arange(len(observed["image"]))
        values, beyond = resolve_do(self.graph, do, observed, len(rows))
        world = self.truth.world(observed, values)
        attributes = {v.name: world[v.name].to(self.device) for v in self.graph.attributes}
        observed = {name: value.to(self.device) for name, value in observed.items()}
        images = [self._images(observed, attributes, chunk) for chunk in rows.split(batch_size)]
        return Counterfactual(attributes, torch.cat(images), {n: b.to(self.device) for n, b in beyond.items()})

    def _images(self, observed: Values, attributes: Values, chunk: Tensor) -> Tensor:
        before, after = ({v.name: world[v.name][chunk] for v in self.network.parents} for world in (observed, attributes))
        return self.network.change(observed["image"][chunk], before, after).clamp(0, 1)

"""Counterfactual and factual training images made from masks, and a penalty of looking at the background.

Chang, Adam and Goldenberg 2021, *Towards robust classification model by counterfactual and invariant data generation* (CVPR).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.base import LazyImages
from datasets.ranges import NotNegative, Share
from datasets.task import Task
from experiments.algorithms.base import Algorithm, Batch, Draw, cross_entropy, require
from experiments.algorithms.counterfactual import drawn
from experiments.algorithms.groups import everywhere
from experiments.algorithms.losses import COUNTERFACTUAL_LOSSES, counterfactual_loss
from experiments.attribution.saliency import PENALTIES, SALIENCY, check_saliency, penalty, saliency
from experiments.augmenters.ready import ready_images
from experiments.augmenters.regions import has_foreground, inside, rectangles
from experiments.augmenters.registry import NONE, augmenter
from experiments.networks.base import Network, evaluating
from mechanisms.runs.files import RunError

REGIONS = ("bbox", "mask")
DSCM, FOLDER = "dscm", "folder"


@dataclass(frozen=True)
class CFFSettings:
    """Of counterfactual and factual data."""

    cf: str = "tile"
    """What fills the foreground's bounding rectangle: mean, random, shuffle, tile or folder; dscm (a model's images of another class,
    no masks); or none for no counterfactual images."""
    cf_folder: str = ""
    """Of cf=folder: where in-painted images are, FOLDER/train/ROW.png."""
    cf_loss: str = "negative"
    """What is asked of them: negative (-log(1 - p_y)), uniform, uniform_others, or double (classes of their own)."""
    cf_weight: NotNegative[float] = 1.0
    """Weight of that loss."""
    factual: str = "mrand"
    """The new background: mrand (of an image of another class), random, shuffle, fgsm, pgd, dscm (a model's counterfactuals, no masks),
    or none."""
    saliency: str = "bbox"
    """Where the network may look: bbox (the mask's bounding rectangle), mask, or none for no penalty."""
    saliency_of: str = "gradient"
    """What tells where it looks: gradient (of the own class's logit), logits_sum, rrr, deeplift or gradcam."""
    saliency_mode: str = "outside"
    """Its penalty: outside (mean square outside the region), cosine (1 - cosine with the region) or f1 (1 - soft F1)."""
    saliency_weight: NotNegative[float] = 10.0
    """Weight of the penalty."""
    saliency_anneal: Share[float] = 0.0
    """Share of the training over which that weight rises linearly from 0; 0: it is there from the beginning."""


class CounterfactualAndFactual(Algorithm):
    """(Σ CE(x, y) + Σ CE(x_F, y) + c·Σ ℓ(x_CF, y)) / n + λ·mean saliency penalty of x, n the number of images in the three sums.

    x_F keeps the foreground, bit for bit, on another background, and the label; x_CF loses the foreground, and ℓ says "not y"
    (:mod:`experiments.algorithms.losses`). All three go through the network in one pass, so batch norm's statistics are of
    all of them; the penalty takes one more, of x in eval mode (:mod:`experiments.attribution.saliency`). Images whose mask is empty count
    among the x alone. Means are over the batch of all processes, each of which makes images from its own rows.

    With ``factual=dscm``, x_F is a counterfactual of a causal model under do(spurious attributes): it keeps the label, so it is
    factual data. With ``cf=dscm``, x_CF is one under do(label = another class), with the spurious attributes as they are. With
    ``cf_loss=double``, the classes "without y" are K further outputs, of a linear layer of their own on the network's features,
    which predictions leave out; attacks and Σ‖w‖² mind all 2K. Of several boxes in an image, what x_CF loses is the rectangle
    around all of them, which may be nearly everything; x_F keeps the boxes alone.

    The random numbers of augmenters come from a generator that is seeded with a draw of the training's noise, so that a
    training resumes bit for bit.
    """

    name = "cf-f"
    title = "Counterfactual + factual data"
    assumes = "what causes the label lies inside the masks, and nothing else of the image does"
    needs = frozenset({"masks"})
    settings = CFFSettings

    def __init__(self, network: Network, sizes: Any, settings: Any = None, l2: float = 0.0) -> None:
        super().__init__(network, sizes, settings, l2)
        asked = self.options
        self.fill, self.background = augmenter("counterfactual", asked.cf), augmenter("factual", asked.factual)
        if asked.saliency != NONE and asked.saliency_of == "logits_sum" and network.head.out_features == 1:
            raise RunError(f"saliency_of=logits_sum: the two logits of --network {network.name} always sum to 0; take gradient")
        if asked.saliency != NONE:
            check_saliency(asked.saliency_of, network)
        self.without: nn.Linear | None = None
        if asked.cf != NONE and asked.cf_loss == "double":
            self.without = nn.Linear(network.head.in_features, sizes.classes)
            nn.init.zeros_(self.without.weight)  # a function of nothing, so that a seed means what it does for other algorithms
            nn.init.zeros_(self.without.bias)

    @classmethod
    def check(cls, settings: CFFSettings) -> None:
        super().check(settings)
        augmenter("counterfactual", settings.cf)
        augmenter("factual", settings.factual)
        if settings.cf == FOLDER:
            require(bool(settings.cf_folder), "cf_folder", settings.cf_folder, "name the folder of ready images: --set cf-f.cf_folder=DIR")
        else:
            require(not settings.cf_folder, "cf_folder", settings.cf_folder, "be empty unless cf=folder")
        for name, valid in (("cf_loss", COUNTERFACTUAL_LOSSES), ("saliency", (*REGIONS, NONE)), ("saliency_of", SALIENCY),
                            ("saliency_mode", PENALTIES)):
            value = getattr(settings, name)
            require(value in valid, name, value, f"be one of {', '.join(valid)}")

    @classmethod
    def needs_of(cls, settings: CFFSettings) -> frozenset[str]:
        """Masks, unless only a model's images are trained on; a network with maps for Grad-CAM."""
        penalised, by_model = settings.saliency != NONE, {NONE, DSCM}
        needs = {"masks": penalised or not {settings.cf, settings.factual} <= by_model, "counterfactuals": settings.factual == DSCM,
                 "relabelled": settings.cf == DSCM, "camera": penalised and settings.saliency_of == "gradcam"}
        return frozenset(name for name, needed in needs.items() if needed)

    @classmethod
    def columns(cls, settings: CFFSettings, task: Task) -> Mapping[str, LazyImages]:
        """``ready``: in-painted images, where they are the counterfactuals."""
        if settings.cf != FOLDER:
            return {}
        return {"ready": ready_images(Path(settings.cf_folder), "train", len(task.dataset.split("train")), task.dataset.schema.image.shape)}

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        images, labels, options = batch["image"], batch["label"], self.options
        masks = batch.get("mask")
        masked = torch.ones_like(labels, dtype=torch.bool) if masks is None else has_foreground(masks)
        parts, counts = [images], [torch.ones_like(masked)]
        for augmented, usable in self.augmented(batch, masks, masked, noise):
            parts.append(augmented)
            counts.append(usable)
        logits = self.outputs(torch.cat(parts)).split(len(images))
        terms = {"risk": cross_entropy(logits[0], labels)}
        if self.background is not None:
            terms["risk_factual"] = cross_entropy(logits[1], labels)
        if self.fill is not None:
            terms["risk_counterfactual"] = counterfactual_loss(options.cf_loss, logits[-1], labels, self.sizes.classes)
        weights = {"risk_counterfactual": options.cf_weight}
        sums = torch.stack([(loss * usable).sum() for loss, usable in zip(terms.values(), counts, strict=True)])
        sums, numbers = everywhere(sums), everywhere(torch.stack([usable.sum() for usable in counts]).float())
        loss = sum(weights.get(name, 1.0) * total for name, total in zip(terms, sums, strict=True)) / numbers.sum()
        logged = {name: total / number.clamp(min=1) for name, total, number in zip(terms, sums, numbers, strict=True)}
        if (weight := self.weight(progress)) > 0:
            outside = penalty(options.saliency_mode, saliency(options.saliency_of, self.network, images, labels), self.region(masks))
            logged["saliency"] = everywhere((outside * masked).sum()) / everywhere(masked.sum().float()).clamp(min=1)
            loss = loss + weight * logged["saliency"]
        return {"loss": loss + self.penalty_of_weights(), **logged}

    def augmented(self, batch: Batch, masks: Tensor | None, masked: Tensor, noise: Draw) -> list[tuple[Tensor, Tensor]]:
        """Factual, then counterfactual images ``(B, C, H, W)``, of what there is, and which of them count, bool ``(B,)``.

        Args:
            masked: bool ``(B,)``, which images have a foreground and a background.
        """
        images, labels = batch["image"], batch["label"]
        generator = torch.Generator(images.device).manual_seed(_seed(noise(len(images), 2)))
        ready = {"factual": drawn(batch, noise) if self.options.factual == DSCM else None,
                 "counterfactual": drawn(batch, noise, "relabelled") if self.options.cf == DSCM else batch.get("ready")}
        pairs = []
        for kind in (self.background, self.fill):
            if kind is not None:
                with evaluating(self.network):  # an attack is on all outputs that are trained
                    augmented = kind(images, masks, labels, generator, network=self.outputs, ready=ready[kind.kind])
                pairs.append((augmented, masked if "masks" in kind.needs else torch.ones_like(masked)))
        return pairs

    def outputs(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)``; with classes of counterfactual images' own, ``(B, 2K)``."""
        if self.without is None:
            return self.network(images)
        features = self.network.features(images)
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self.network.logits(features), self.without(features.float())], 1)

    def penalty_of_weights(self) -> Tensor | float:
        """That of every algorithm, with the classes of counterfactual images' own."""
        further = () if self.without is None else self.without.parameters()
        return super().penalty_of_weights() + self.l2 * sum(p.square().sum() for p in further)

    def region(self, masks: Tensor) -> Tensor:
        """Where the network may look, bool ``(B, H, W)``."""
        return inside(rectangles(masks), *masks.shape[1:]) if self.options.saliency == "bbox" else masks

    def weight(self, progress: float) -> float:
        """Of the saliency penalty; 0 where there is none."""
        if self.options.saliency == NONE:
            return 0.0
        share = self.options.saliency_anneal
        return self.options.saliency_weight * (min(1.0, progress / share) if share else 1.0)


def _seed(normals: Tensor) -> int:
    """An integer that is a function of the first row of draws ``(B, 2)``."""
    first, second = normals[0].float().contiguous().view(torch.int32).tolist()
    return (first % 2**31 << 32) + second % 2**32

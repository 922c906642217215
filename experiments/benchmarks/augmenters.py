"""How fast augmenters are."""

from __future__ import annotations

import time

import torch

from experiments.augmenters.registry import KINDS
from experiments.networks.small import SmallCNN
from mechanisms.training.noise import seeded


def measure_augmenters(count: int = 128, size: int = 224, attacks: bool = False) -> dict[str, float]:
    """Images per second of every augmenter, ``{"counterfactual tile": …}``: RGB images, foregrounds of all sizes, one batch.

    The batch is made twice, and the second time counts.

    Args:
        count: images in the batch.
        size: their height and width.
        attacks: measure those that ask a network, a SmallCNN of two classes, instead of those that ask none.
    """
    generator = seeded(0)
    images = torch.rand(count, 3, size, size, generator=generator)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for mask, ends in zip(masks, torch.rand(count, 4, generator=generator), strict=True):
        top, bottom, left, right = (ends * size).long().tolist()
        mask[min(top, bottom):max(top, bottom) + 1, min(left, right):max(left, right) + 1] = True
    labels, network = torch.arange(count) % 2, SmallCNN((3, size, size), 2) if attacks else None
    speeds = {}
    for kind, augmenters in KINDS.items():
        for name, augmenter in augmenters.items():
            if ("network" in augmenter.needs) != attacks:
                continue
            for _ in range(2):
                began = time.perf_counter()
                augmenter()(images, masks, labels, generator, network=network, ready=images)
                speeds[f"{kind} {name}"] = count / (time.perf_counter() - began)
    return speeds

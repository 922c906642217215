"""Features of a frozen body: computed once for all seeds, algorithms and runs that share it, and kept on disk.

A frozen body (:meth:`experiments.networks.base.Network.freeze`) gives the same features of an image in every update, so the
head can be trained on a column ``features`` ``(N, F)`` instead of images. They are kept in the cache directory
(:mod:`datasets.files.cache`) under the body's weights and the images that they are of.
"""

from __future__ import annotations

import hashlib

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from datasets.base import Split
from datasets.files.cache import cached
from datasets.files.images import stamp_of
from experiments.networks.base import Network, at_once, evaluating

FEATURES = "features"
_SAMPLED = 64  # of images that are not in memory, by which these are told from others


@torch.no_grad()
def extract(network: Network, split: Split) -> Tensor:
    """``network.features`` of all images of a split, ``(N, F)`` float32 on the processor; in eval mode and single precision."""
    device, features = network.head.weight.device, []
    parts = torch.arange(len(split)).split(at_once(network.shape))
    with evaluating(network):
        for rows in tqdm(parts, desc=f"features of {split.name}", unit="batch", dynamic_ncols=True, leave=False, disable=len(parts) == 1):
            features.append(network.features(split.batch(rows)["image"].to(device)).float().cpu())
    return torch.cat(features)


def stored(network: Network, split: Split, device: torch.device) -> Tensor:
    """:func:`extract`, or what an earlier call with an equal body and equal images has kept.

    Of several processes the first one computes, and the others read.
    """
    key = {"network": network.name, "shape": network.shape, "body": network.body_fingerprint(), "split": split.name,
           "rows": len(split), "images": images_fingerprint(split)}
    with PartialState().main_process_first():
        return torch.from_numpy(cached(FEATURES, key, lambda: {FEATURES: extract(network.to(device), split).numpy()})[FEATURES])


def images_fingerprint(split: Split) -> str:
    """A hash of all images; of images that are not in memory, of some from all over the split, all files' stamps, and all attributes."""
    digest = hashlib.blake2b(digest_size=10)
    if split.in_memory:
        digest.update(split.images.contiguous().numpy().data)
        return digest.hexdigest()
    for row in torch.linspace(0, len(split) - 1, min(_SAMPLED, len(split))).long().tolist():
        digest.update(torch.as_tensor(split.images[row]).contiguous().numpy().tobytes())
    digest.update(stamp_of(split.images))
    for name, values in sorted(split.attributes.items()):
        if isinstance(values, Tensor):
            digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def with_features(network: Network, split: Split, device: torch.device) -> Split:
    """The same rows with the column ``features``, and images of no pixels."""
    rows = split.without_images()
    return Split(rows.name, rows.images, {**rows.attributes, FEATURES: stored(network, split, device)})

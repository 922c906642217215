"""Experts put to use: on a folder of images, and on another hand."""

from __future__ import annotations

import csv
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datasets.imagefolder import common_size, image_paths, read_images
from datasets.mnist import PREFIX, has_idx, read_digits
from datasets.schema import Graph
from datasets.unpaired import UnpairedDataset, unpaired
from mechanisms.checkpoint import RunError, replacing, write_json
from mechanisms.devices import find_device
from mechanisms.experts.classifier import classifier
from mechanisms.experts.evaluation import evaluate, table
from mechanisms.experts.metrics import over_seeds
from mechanisms.experts.model import FOLDER, Experts, some_seeds
from mechanisms.noise import some_of
from mechanisms.runs import dataset_of, recorded

_AT_MOST = 2000  # images from elsewhere that experts are scored on


def apply(run: Path, folder: Path, out: Path, seed: int | None = None, device: str = "cpu") -> Path:
    """Every image of ``folder`` through the expert that wins it, written to ``out`` under its name as PNG, with ``routes.csv``.

    They must be of one size: that of the experts' images, or that without the padding which these had, see :func:`_brought`.

    Args:
        seed: whose experts; the lowest there is without it.

    Returns:
        The path of ``routes.csv``: file, winner, and the score of every expert.

    Raises:
        UserError: for a folder without images, with images of several sizes or of one that does not suit, or broken ones; for
            names that differ in their endings only; for a seed that was not trained; for ``out`` that is ``folder``.
    """
    model = Experts.load(run, seed, find_device(device))
    if out.resolve() == folder.resolve():
        raise RunError(f"--out {out} is the folder that is read; choose another one")
    paths, written = image_paths(folder), {}
    for path in paths:
        if (first := written.setdefault(f"{path.stem}.png", path)) is not path:
            raise RunError(f"{first} and {path} would both be written as {path.stem}.png; rename one of them")
    made, winner, scores = (found.cpu() for found in model.invert(_brought(paths, model, run)))
    out.mkdir(parents=True, exist_ok=True)
    for path, image in zip(paths, made, strict=True):
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with replacing(out / f"{path.stem}.png") as temporary:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(temporary, format="png")
    routes = out / "routes.csv"
    with replacing(routes) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "winner", *(f"score_{e}" for e in range(scores.shape[1]))])
        for path, w, row in zip(paths, winner.tolist(), scores.tolist(), strict=True):
            writer.writerow([path.name, w, *(f"{value:.4f}" for value in row)])
    return routes


def _brought(paths: list[Path], model: Experts, run: Path) -> Tensor:
    """Images, float in [0, 1] ``(N, C, H, W)``, of the experts' size.

    A mechanism has acted on them already, on what is around them too, so they are padded by repeating their edges: black
    would be right for some mechanisms only. They are resized only if training images were.

    Raises:
        UserError: for sizes that differ, or one that does not suit.
    """
    channels, *whole = model.shape
    size, inner = list(common_size(paths)), [side - 2 * model.margin for side in whole]
    if size == inner:
        return F.pad(read_images(paths, (channels, *inner)).float() / 255, (model.margin,) * 4, mode="replicate")
    if size != whole and recorded(run)["options"].get("size", "0") == "0":
        suits = " or ".join(f"{height} × {width}" for height, width in ([whole, inner] if model.margin else [whole]))
        raise RunError(f"images of {paths[0].parent} have {size[0]} × {size[1]} pixels, the experts of {run} take {suits}, and their "
                       "training images were not resized; crop or resize these so that what they show is as large as it was there")
    return read_images(paths, model.shape).float() / 255


def transfer(run: Path, source: Path | None, device: str) -> dict[str, Any]:
    """Experts of every seed on images of another kind, which the run's own transformations act upon.

    Without ``source`` these are scikit-learn's digits, another hand. Where the run is about digits too, they are those that
    it kept, and their labels are known, so that a classifier trained on the run's clean digits tells clean, transformed and
    restored ones. A folder may hold IDX files (Fashion-MNIST) or images, in sub-folders too (Omniglot); its labels, if any,
    are of no use here. Of more than 2,000 images as many are drawn.

    Returns:
        What ``RUN/experts/transfer.json`` holds, like :func:`mechanisms.experts.evaluation.summary`.

    Raises:
        UserError: for a run without experts, or one whose transformations are not known as functions.
    """
    seeds, place = some_seeds(run), find_device(device)
    dataset = unpaired(dataset_of(run))
    if not (transforms := dataset.transformations):
        raise RunError(f"{run} was trained on {dataset.title}, which does not say by which functions its images were transformed, so that "
                       "they cannot act on others; put other images that were transformed already through its experts: --apply FOLDER")
    shape = dataset.schema.image.shape
    clean, labels = _other_hand(shape) if source is None else (_foreign(source, shape, dataset.margin), None)
    if labels is not None:
        kept = _digits_of(run, dataset)
        clean, labels = (clean, None) if kept is None else (clean[torch.isin(labels, kept)], labels[torch.isin(labels, kept)])
    named = str(source or "scikit-learn's digits")
    held = dataset.canonical("test")
    usual = statistics.fmean(float(torch.as_tensor(held[k]).float().mean()) / 255 for k in range(min(len(held), _AT_MOST)))
    brightness = float(clean.mean())
    if abs(1 - brightness - usual) < abs(brightness - usual):
        warnings.warn(f"{named}: images are bright ({brightness:.2f} of 1 on average), those that the experts know dark ({usual:.2f}), or "
                      "the other way round: if they are ink on paper and the experts' are light on black, invert them first", stacklevel=2)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    moved = torch.cat([transform(clean, noise) for transform in transforms])
    mechanism = torch.arange(len(transforms)).repeat_interleave(len(clean))
    judge = classifier(run, dataset, device) if labels is not None else None
    repeated = clean.repeat(len(transforms), 1, 1, 1)
    results = {}
    for seed in seeds:
        results[seed] = evaluate(Experts.load(run, seed, place), moved, mechanism, dataset.mechanisms, repeated,
                                 None if labels is None else labels.repeat(len(transforms)), judge)
    found = {"source": named, "images": len(clean), "seeds": {str(s): r for s, r in results.items()},
             "over_seeds": over_seeds([result["figures"] for result in results.values()])}
    write_json(run / FOLDER / "transfer.json", found)
    print(table(results))
    return found


def _digits_of(run: Path, dataset: UnpairedDataset) -> Tensor | None:
    """The digits that a run was trained on, ``(K,)``; None if its label is another one."""
    if not dataset.label or dataset.schema[dataset.label].classes != tuple("0123456789"):
        return None
    counts = Graph.from_dict(recorded(run)["graph"])[dataset.label].statistics.counts  # of the training split
    return torch.tensor([digit for digit, count in enumerate(counts) if count])


def _foreign(source: Path, shape: tuple[int, int, int], margin: int) -> Tensor:
    """Images from elsewhere, float in [0, 1] ``(N, C, H, W)``, at most 2,000."""
    if not has_idx(source, PREFIX["test"]):
        paths = image_paths(source, nested=True)
        return read_images([paths[k] for k in some_of(len(paths), _AT_MOST, 0)], shape, margin).float() / 255
    images = torch.from_numpy(read_digits(source, PREFIX["test"])[0]).unsqueeze(1).float() / 255
    images = images[some_of(len(images), _AT_MOST, 0)]
    size = [side - 2 * margin for side in shape[1:]]
    if tuple(images.shape[2:]) != tuple(size):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return F.pad(images, (margin,) * 4).expand(-1, shape[0], -1, -1)


def _other_hand(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """scikit-learn's 8 × 8 digits, drawn 20 pixels high and centred by mass as MNIST's are, and their labels.

    Of images in colour all channels are alike, white on black.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    height, width = shape[1:]
    drawn = F.interpolate(small, size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    # MNIST's strokes are nearly black and white; upscaled grey levels are not
    drawn = ((drawn - 0.25) / 0.5).clamp(0, 1)
    images = torch.zeros(len(drawn), shape[0], height, width)
    grid = torch.arange(20).float()
    for image, digit in zip(images, drawn[:, 0], strict=True):
        mass = digit.sum()
        y, x = ((digit.sum(k) * grid).sum() / mass for k in (1, 0))
        top, left = round(height / 2 - 0.5 - float(y)), round(width / 2 - 0.5 - float(x))
        image[:, top:top + 20, left:left + 20] = digit
    return images, torch.from_numpy(data.target).long()

"""Experts put to use: on a folder of images, and on another hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datasets.imagefolder import read_folder
from datasets.transforms import parse
from datasets.unpaired import unpaired
from mechanisms.checkpoint import RunError, replacing, write_json
from mechanisms.experts.classifier import classifier
from mechanisms.experts.evaluation import evaluate, table
from mechanisms.experts.metrics import over_seeds
from mechanisms.experts.model import FOLDER, Experts, trained_seeds
from mechanisms.runs import dataset_of


def apply(run: Path, folder: Path, out: Path, seed: int | None = None) -> Path:
    """Every image of ``folder`` through the expert that wins it, written to ``out`` under its name as PNG, with ``routes.csv``.

    Images of another size than the experts' are resized; they must be of one size among themselves.

    Returns:
        The path of ``routes.csv``: file, winner, and the score of every expert.

    Raises:
        UserError: for a folder without images, with images of several sizes, or broken ones.
    """
    model = Experts.load(run, seed)
    paths, images = read_folder(folder, model.shape)
    if out.resolve() == folder.resolve():
        raise RunError(f"--out {out} is the folder that is read; choose another one")
    made, winner, scores = model.invert(images.float() / 255)
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


def transfer(run: Path, source: Path | None, device: str) -> dict[str, Any]:
    """Experts of every seed on images of another kind, which the run's own transformations act upon.

    Without ``source`` these are scikit-learn's digits, another hand: labels are known, so that a classifier trained on the
    run's clean digits tells clean, transformed and restored ones. From a folder there are no labels.

    Returns:
        What ``RUN/experts/transfer.json`` holds, like :func:`mechanisms.experts.evaluation.summary`.

    Raises:
        UserError: where the run's mechanisms have no names that :func:`datasets.transforms.parse` knows.
    """
    dataset = unpaired(dataset_of(run))
    transforms = parse(",".join(dataset.mechanisms), "the mechanisms of the run")
    shape = dataset.schema.image.shape
    clean, labels = (read_folder(source, shape)[1].float() / 255, None) if source else _other_hand(shape)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    moved = torch.cat([transform(clean, noise) for transform in transforms])
    mechanism = torch.arange(len(transforms)).repeat_interleave(len(clean))
    judge = classifier(run, dataset, device) if labels is not None else None
    repeated = clean.repeat(len(transforms), 1, 1, 1)
    results = {}
    for seed in _seeds(run):
        results[seed] = evaluate(Experts.load(run, seed), moved, mechanism, dataset.mechanisms, repeated,
                                 None if labels is None else labels.repeat(len(transforms)), judge)
    found = {"source": str(source or "scikit-learn's digits"), "images": len(clean), "seeds": {str(s): r for s, r in results.items()},
             "over_seeds": over_seeds([result["figures"] for result in results.values()])}
    write_json(run / FOLDER / "transfer.json", found)
    print(table(results))
    return found


def _seeds(run: Path) -> list[int]:
    if not (seeds := trained_seeds(run)):
        raise RunError(f"{run} has no experts yet; train them first: python -m mechanisms.experts --run {run}")
    return seeds


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

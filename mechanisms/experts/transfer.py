"""Experts scored on images of another source, under the transformations that they have learned to undo."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.files.elsewhere import AT_MOST, images_from, sklearn_digits
from datasets.unpaired import UnpairedDataset, unpaired
from mechanisms.experts.classifier import classifier
from mechanisms.experts.compare import alike
from mechanisms.experts.evaluation import evaluate, table
from mechanisms.experts.figures import grid, write
from mechanisms.experts.metrics import over_seeds
from mechanisms.experts.model import FOLDER, Experts, some_seeds
from mechanisms.runs.files import RunError, write_json
from mechanisms.runs.folder import dataset_of, graph_of
from mechanisms.training.devices import find_device


def transfer(run: Path, source: Path | None, device: str, seed: int | None = None) -> dict[str, Any]:
    """Experts on images of another kind, which the run's own transformations act upon.

    Those of every seed that was trained as ``seed`` was, or as the lowest without it.

    Without ``source`` these are scikit-learn's digits. Where the run is about digits too, they are those that
    it kept, and their labels are known, so that a classifier trained on the run's clean digits tells clean, transformed and
    restored ones. A folder may hold IDX files (Fashion-MNIST) or images, in sub-folders too (Omniglot); its labels, if any,
    are of no use here. Of more than 2,000 images as many are drawn.

    Returns:
        What ``RUN/experts/transfer-SOURCE.json`` holds, like :func:`mechanisms.experts.evaluation.summary`; a picture of
        the same name shows the first seed's experts at work.

    Raises:
        UserError: for a run without experts, or one whose transformations are not known as functions.
    """
    first, place = some_seeds(run)[0] if seed is None else seed, find_device(device)
    seeds = alike(run, first)
    if left := [other for other in some_seeds(run) if other not in seeds]:
        warnings.warn(f"seeds {', '.join(map(str, left))} of {run} were trained otherwise than seed {first} and are left out; --seed names "
                      "another one", stacklevel=2)
    dataset = unpaired(dataset_of(run))
    if not (transforms := dataset.transformations):
        raise RunError(f"{run} was trained on {dataset.title}, which does not say by which functions its images were transformed, so that "
                       "they cannot act on others; put other images that were transformed already through its experts: --apply FOLDER")
    shape = dataset.schema.image.shape
    clean, labels = sklearn_digits(shape) if source is None else (images_from(source, shape, dataset.margin), None)
    if labels is not None:
        kept = _digits_of(run, dataset)
        clean, labels = (clean, None) if kept is None else (clean[torch.isin(labels, kept)], labels[torch.isin(labels, kept)])
    named = str(source or "scikit-learn's digits")
    held = dataset.canonical("test")
    usual = statistics.fmean(float(torch.as_tensor(held[k]).float().mean()) / 255 for k in range(min(len(held), AT_MOST)))
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
    to = run / FOLDER / f"transfer-{'digits' if source is None else source.resolve().name}.json"
    write_json(to, found)
    shown = torch.tensor([k * len(clean) + k * len(clean) // len(transforms) for k in range(len(transforms))])  # another one for each
    canonical = torch.stack([torch.as_tensor(held[k % len(held)]) for k in range(len(shown))]).float() / 255
    write(grid(Experts.load(run, first), moved[shown], canonical, dataset.mechanisms, results[first].get("found"), repeated[shown]),
          to.with_suffix(".png"))
    print(f"{len(clean):,} images of {named}, each under {len(transforms)} mechanisms\n{table(results)}\n{to} and .png")
    return found


def _digits_of(run: Path, dataset: UnpairedDataset) -> Tensor | None:
    """The digits that a run was trained on, ``(K,)``; None if its label is another one."""
    if not dataset.label or dataset.schema[dataset.label].classes != tuple("0123456789"):
        return None
    counts = graph_of(run)[dataset.label].statistics.counts  # of the training split
    return torch.tensor([digit for digit, count in enumerate(counts) if count])

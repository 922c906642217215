"""A classifier of clean images, frozen: whether experts restore what it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datasets.base import Split
from datasets.schema import Graph
from datasets.unpaired import UnpairedDataset
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.anticausal.model import Predictors, describe
from mechanisms.runs.files import check_finite
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.loop import fit
from mechanisms.training.state import CHECKPOINT, WEIGHTS

FOLDER = "classifier"
SETTINGS = TrainingConfig(steps=500, batch_size=64, learning_rate=2e-3, beta2=0.99, warmup=50, weight_decay=0.05, clip=20.0, ema=0.99,
                          precision="fp32", validations=4)
_AT_ONCE = 500


def classifier(run: Path, dataset: UnpairedDataset, device: str) -> Predictors | None:
    """The classifier of the data set's label on clean images, from the run folder or trained into it.

    None without clean images, or with fewer than two classes. Under ``torchrun`` all processes must call this.

    It is trained on the clean training images that were then transformed, never on a transformed one.
    """
    clean = dataset.clean("train")
    if clean is None or not dataset.label:
        return None
    splits = {name: _clean(dataset, name) for name in ("train", "valid")}
    if len(splits["train"].attributes[dataset.label].unique()) < 2:
        return None  # of a single class, everybody is right
    image, label = dataset.schema.image, dataset.schema[dataset.label]
    graph = Graph((label, replace(image, parents=(label.name,)))).fitted(splits["train"].attributes)
    torch.manual_seed(SETTINGS.seed)
    model = Predictors(graph, PredictorConfig(width=16, blocks=1))
    begun = (run / FOLDER / CHECKPOINT).exists()  # one that was interrupted is trained to its end first
    fit(model, splits["train"], splits["valid"], replace(SETTINGS, device=device), run / FOLDER, describe(model),
        RunOptions(run, resume=begun))
    check_finite(model, run / FOLDER / WEIGHTS, "Delete its folder; it is then trained again")
    return model.cpu().eval().requires_grad_(False)


def _clean(dataset: UnpairedDataset, split: str) -> Split:
    """Each clean image once, with its label."""
    first: dict[int, int] = {}
    subjects = dataset.distinct_subjects(split)
    for row, subject in enumerate(range(len(dataset.split(split))) if subjects is None else subjects.tolist()):
        first.setdefault(subject, row)
    rows = torch.tensor(list(first.values()))
    return Split(split, dataset.clean(split)[rows], {dataset.label: dataset.split(split).attributes[dataset.label][rows]})


@torch.no_grad()
def accuracy(model: Predictors, images: Tensor, labels: Tensor) -> float:
    """Share of images, float in [0, 1] ``(N, C, H, W)``, whose label ``(N,)`` the classifier tells."""
    (name,) = model.names
    told = torch.cat([model.predict(part)[name] for part in images.split(_AT_ONCE)])
    return float((told == labels).float().mean())

"""Counterfactuals of the training split that classifiers are trained on."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from datasets.base import CausalDataset, Split, fingerprint
from datasets.memory import check_memory
from datasets.schema import SchemaError
from datasets.task import Task, check_label
from dscm.exports.dataset import weights_hash
from dscm.model import DSCM
from mechanisms.runs.files import RunError, load, save, waiting
from mechanisms.runs.folder import recorded
from mechanisms.training.noise import seeded


def training_counterfactuals(task: Task, source: DSCM | None, per_row: int = 1, seed: int = 0, folder: Path | None = None,
                             relabel: bool = False) -> Tensor:
    """uint8 ``(N, M, C, H, W)``: M counterfactuals of each training row, under which its label stays.

    In each, every spurious attribute is set to a draw of its own from its training marginal, all at once.

    Args:
        relabel: instead, set the label to a random other class, and the spurious attributes to what they are: what shows the class
            changes, and the rest stays.
        source: the learned model; None for the true process.
        per_row: M.
        folder: where they are kept for the next time; several processes that ask at once wait for the first. Without it,
            they are made anew.

    Raises:
        SchemaError: without spurious attributes; where they would change the label; for ``per_row`` below 1.
        RunError: without a source: no model is given and the process is not known; for a folder that cannot be written.
    """
    names = [v.name for v in task.spurious]
    if relabel:
        task.check_relabelling("training on images of other classes")
        names = [task.label.name, *names]
    else:
        task.check_groups("training on counterfactuals")
        check_label(task, names, f"do({', '.join(names)})")
    if per_row < 1:
        raise SchemaError(f"per_row={per_row} must be at least 1")
    if source is None and not task.dataset.has_truth(names):
        raise RunError(f"{task.dataset.title} has no true images under do({', '.join(names)}), so its counterfactuals must come from a "
                       "learned model: --model RUN (train one with pgm.train and mechanisms.train)")
    rows = task.dataset.split("train")
    if folder is None:
        return _made(task, source, rows, per_row, seed, relabel)
    key = {"source": "truth" if source is None else weights_hash(source), "names": names, "per_row": per_row, "seed": seed,
           "rows": fingerprint(rows, torch.arange(len(rows)))}
    path = folder / f"{'relabelled' if relabel else 'counterfactuals'}-{key['source']}-{per_row}x-seed-{seed}.pt"
    with waiting(folder / ".counterfactuals.lock"):
        if path.exists() and (state := load(path, "counterfactuals"))["key"] == key:
            return state["images"]
        images = _made(task, source, rows, per_row, seed, relabel)
        save(path, {"kind": "counterfactuals", "key": key, "images": images})
    return images


def _made(task: Task, source: DSCM | None, rows: Split, per_row: int, seed: int, relabel: bool = False) -> Tensor:
    """As they are made, chunk by chunk, with a bar."""
    from tqdm import tqdm

    count = len(rows) * per_row
    check_memory(2 * count * math.prod(task.dataset.schema.image.shape),
                 f"--counterfactuals {per_row} of {len(rows)} rows, {count:,} images,", "Take fewer")
    images = torch.empty(len(rows), per_row, *task.dataset.schema.image.shape, dtype=torch.uint8)
    with tqdm(total=len(rows) * per_row, desc="counterfactuals of the training split", unit=" images", delay=2) as bar:
        for m in range(per_row):
            if relabel:
                classes, labels = task.classes, rows.attributes[task.label.name]
                other = (labels + torch.randint(1, classes, labels.shape, generator=seeded(seed, m))) % classes
                do = {task.label.name: other, **{v.name: rows.attributes[v.name] for v in task.spurious}}
            else:
                do = {v.name: marginal(rows.attributes[v.name], len(rows), seeded(seed, m, k)) for k, v in enumerate(task.spurious)}
            for k, index in enumerate(torch.arange(len(rows)).split(CHUNK)):
                part = {name: value[index] for name, value in do.items()}
                if source is None:
                    changed = task.dataset.true_counterfactual("train", index, part)["image"]
                else:
                    changed = source.counterfactual(rows.batch(index), part, generator=seeded(seed, m, ABDUCTION, k)).image.cpu()
                images[index, m] = (changed * 255).round().to(torch.uint8)
                bar.update(len(index))
    return images


CHUNK = 512  # rows that are made at once; part of what a seed means, since noise is drawn for each chunk
ABDUCTION = 10**6  # the stream of latents' noise, apart from those of drawn values


def marginal(training: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return training[torch.randint(len(training), (count,), generator=generator)]


def check_model(run: Path, dscm: DSCM, dataset: CausalDataset) -> None:
    """That the model of a run folder was trained on this data set's images, or on those that its rows were selected from.

    Raises:
        RunError: for a model of another graph, training split, or rows; or of other images of the same rows.
    """
    inner = dataset.answered_by
    if difference := dscm.graph.difference(inner.graph):
        raise RunError(f"--model {run} was trained on other data than the classifiers are about (model against data): {difference}")
    record = recorded(run)
    if record.get("rows", inner.training_fingerprint) != inner.training_fingerprint:
        began = ", ".join(f"{key}={value}" for key, value in record["options"].items()) or "no options"
        raise RunError(f"--model {run} was trained on other images than those of {inner.title} here: it was begun with {record['dataset']} "
                       f"({began}). Train one on the same data, with the same options")

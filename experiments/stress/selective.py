"""How often MaskTune and its ERM together are sure enough to answer, and how right they are then: on test images and under shifts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.task import Task
from experiments.metrics.selective import agreed, coverage_table
from experiments.training.selection import shifts_of
from experiments.training.store import Trained, check_base, list_trained, load_trained, trained_task
from mechanisms.runs.files import RunError, write_json
from mechanisms.runs.tables import markdown, mean_over
from mechanisms.training.devices import find_device
from mechanisms.training.noise import seeded


def images_to_answer(task: Task, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, images (float in [0, 1]) and labels of the test split: as observed, and under each shift with a known truth."""
    dataset, rows = task.dataset, task.dataset.split("test")
    index = torch.arange(len(rows))
    yield "observed", rows.batch(index)["image"], rows.attributes[task.label.name]
    for k, name in enumerate(shifts_of(task, "test"), 1):
        do = task.shifted(name, rows.attributes, seeded(seed, k))
        world = dataset.true_worlds("test", index, do)
        yield name, world["image"], world[task.label.name]


def selective(run: Path, rule: str, wanted: Sequence[float], seed: int = 0, device: str = "cpu") -> list[dict[str, Any]]:
    """One row for each seed, test set and wanted coverage: ``seed``, ``test``, and the fields of
    :class:`experiments.metrics.selective.Coverage`.

    Raises:
        RunError: for a run without masktune, or without the very erm that it began with.
    """
    seeds, place = [seed_of for name, seed_of in list_trained(run) if name == "masktune"], find_device(device)
    if not seeds:
        raise RunError(f"{run} has no masktune; train it: python -m experiments.train --run {shlex.quote(str(run))} --algorithm "
                       "erm,masktune, with its data set")

    def sure(pair: tuple[Trained, Trained], images: Tensor) -> Tensor:
        return agreed(*(trained.predict(images) for trained in pair))

    task = trained_task(run, load_trained(run, "masktune", seeds[0], rule))
    pairs = {n: (load_trained(run, "erm", n, "last", place), load_trained(run, "masktune", n, rule, place)) for n in seeds}
    for erm, masktune in pairs.values():
        check_base(run, masktune, erm)
    valid = task.dataset.split("valid").batch(slice(None))["image"]
    on_valid, rows = {n: sure(pair, valid) for n, pair in pairs.items()}, []
    for test, images, labels in images_to_answer(task, seed):
        for n, pair in pairs.items():
            rows += [{"seed": n, "test": test, **asdict(row)} for row in coverage_table(on_valid[n], sure(pair, images), labels, wanted)]
    return rows


def selective_table(rows: Sequence[dict[str, Any]], rule: str) -> str:
    """The table, in percent: means over seeds with their standard errors, and what it says."""
    def cell(values: list[float | None]) -> str:
        if any(value is None for value in values):
            return "–"
        mean, error = mean_over([100 * value for value in values])
        return f"{mean:.1f}" + (f" ± {error:.1f}" if error is not None else "")

    lines = []
    for test, wanted in dict.fromkeys((row["test"], row["wanted"]) for row in rows):
        same = [row for row in rows if (row["test"], row["wanted"]) == (test, wanted)]
        lines.append([test, f"{100 * wanted:g}", *(cell([row[key] for row in same]) for key in ("answered", "accuracy", "balanced"))])
    seeds = len({row["seed"] for row in rows})
    return "\n".join([
        markdown(["test images", "wanted %", "answered %", "accuracy of answers %", "balanced %"], lines), "",
        f"ERM and MaskTune together, p = softmax(p_erm · p_masktune); {seeds} {'seed' if seeds == 1 else 'seeds, mean ± standard error'}; "
        f"MaskTune's weights selected by: {rule}. Thresholds are from validation images as observed; – where a class is never answered."])


def selective_into(file: Path, run: Path, rule: str, wanted: Sequence[float], seed: int = 0, device: str = "cpu") -> None:
    """:func:`selective`, written to a JSON file, and its table printed."""
    rows = selective(run, rule, wanted, seed, device)
    write_json(file, {"rule": rule, "seed": seed, "rows": rows})
    print(selective_table(rows, rule))
    print(f"written to {file}")

"""``python -m experiments.selective``: how often MaskTune and its ERM together are sure enough to answer, and how right they are then."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datasets.errors import UserError
from datasets.ranges import Range, Seed
from datasets.words import listed_numbers
from mechanisms.runs.command import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.task import Task
    from experiments.training.store import Trained

COVERAGES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
_FILE = "selective.json"


@dataclass(frozen=True)
class Options:
    """Answer only where ERM and MaskTune are sure together, p = softmax(p_erm · p_masktune): coverage and accuracy of the answers.

    The threshold for each wanted coverage is the one that gives it on validation images as observed; the test images are those
    as observed and those under the data set's named shifts, as far as the true process makes them.

    For instance: python -m experiments.selective --run runs/classifiers --coverage 0.8,0.9,1
    """

    run: Path = Path("runs/classifiers")
    """Run folder in which experiments.train has trained erm and masktune."""
    coverage: str = ""
    """Wanted shares of images that are answered, comma-separated; several from 0.5 to 1 without it."""
    rule: Literal["last", "iid", "worst-group", "oracle"] = "last"
    """By which rule MaskTune's weights were selected; ERM's are those of the end, with which fine-tuning began."""
    out: Path | None = None
    """File to write, JSON; without it selective.json in the run folder."""
    seed: Seed[int] = 0
    """Of what is random in shifts."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def coverages(self) -> tuple[float, ...]:
        """Raises UserError for one that is no number in (0, 1]."""
        wanted = tuple(listed_numbers(self.coverage, "--coverage", float)) or COVERAGES
        if wrong := [f"{c:g}" for c in wanted if not Range(0, 1, above=True).holds(c)]:
            raise UserError(f"--coverage {', '.join(wrong)} must lie in (0, 1]: the share of images that are answered")
        return wanted


def sets_of(task: Task, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, images (float in [0, 1]) and labels of the test split: as observed, and under each shift with a known truth."""
    import torch

    from experiments.training.selection import shifts_of
    from mechanisms.training.noise import seeded

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
    from dataclasses import asdict

    from experiments.metrics.selective import agreed, coverage_table
    from experiments.training.store import check_base, list_trained, load_trained, trained_task
    from mechanisms.runs.files import RunError
    from mechanisms.training.devices import find_device

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
    known, rows = {n: sure(pair, valid) for n, pair in pairs.items()}, []
    for test, images, labels in sets_of(task, seed):
        for n, pair in pairs.items():
            rows += [{"seed": n, "test": test, **asdict(row)} for row in coverage_table(known[n], sure(pair, images), labels, wanted)]
    return rows


def report(rows: Sequence[dict[str, Any]], rule: str) -> str:
    """The table, in percent: means over seeds with their standard errors, and what it says."""
    from mechanisms.runs.tables import markdown, mean_over

    def cell(values: list[float | None]) -> str:
        if any(value is None for value in values):
            return "–"
        mean, error = mean_over([100 * value for value in values])
        return f"{mean:.1f}" + (f" ± {error:.1f}" if error is not None else "")

    lines = []
    for test, wanted in dict.fromkeys((row["test"], row["wanted"]) for row in rows):
        ours = [row for row in rows if (row["test"], row["wanted"]) == (test, wanted)]
        lines.append([test, f"{100 * wanted:g}", *(cell([row[key] for row in ours]) for key in ("answered", "accuracy", "balanced"))])
    seeds = len({row["seed"] for row in rows})
    return "\n".join([
        markdown(["test images", "wanted %", "answered %", "accuracy of answers %", "balanced %"], lines), "",
        f"ERM and MaskTune together, p = softmax(p_erm · p_masktune); {seeds} {'seed' if seeds == 1 else 'seeds, mean ± standard error'}; "
        f"MaskTune's weights selected by: {rule}. Thresholds are from validation images as observed; – where a class is never answered."])


def main(options: Options) -> None:
    wanted = options.coverages()

    from mechanisms.runs.files import write_json

    rows = selective(options.run, options.rule, wanted, options.seed, options.device)
    out = options.out or options.run / _FILE
    write_json(out, {"rule": options.rule, "seed": options.seed, "rows": rows})
    print(report(rows, options.rule))
    print(f"written to {out}")


if __name__ == "__main__":
    run_command(Options, main)

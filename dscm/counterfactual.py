"""``python -m dscm.counterfactual``: images of a run's data set, and what they would have looked like under interventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, NotNegative, Seed, check_ranges, within
from datasets.words import listed_numbers
from mechanisms.runs.command import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.base import CausalDataset
    from dscm.figures.grid import Column
    from dscm.model import DSCM
    from pgm.interventions import Do

Draws = within(1, 10_000)  # all of an image's are computed at once


@dataclass(frozen=True)
class Options:
    """Draw a grid of counterfactuals: observed images, interventions, and below each answer its difference and the truth.

    For instance: python -m dscm.counterfactual --run runs/model --do thickness=1.5,3,5 --do intensity=100,200 --out grid.png
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms."""
    do: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Interventions: name=value[,value…], name+=delta[,delta…] or name~marginal; may be repeated."""
    out: Path = Path("counterfactuals.png")
    """Image file to write: .png, .pdf, .svg, …."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the observed images come from."""
    count: AtLeastOne[int] = 8
    """How many images, from the beginning of the split."""
    rows: str = ""
    """Which images instead, as row numbers of the split: 3,17."""
    draws: Draws[int | None] = None
    """Posterior draws of the image's latents: their mean is shown, and their spread. Without it, one answer at the latents' mean."""
    temperature: NotNegative[float] = 1.0
    """Of the pixel residual: 1 keeps every detail of the image, 0 shows what the latents explain."""
    effect: Literal["total", "direct", "indirect"] = "total"
    """Of a latent mediator: direct keeps its latents, indirect changes nothing else."""
    seed: Seed[int] = 0
    """Of all draws."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""


def open_run(run: Path, device: str = "auto") -> tuple[DSCM, CausalDataset]:
    """The model of a run folder and the data set that it was trained on.

    Raises:
        RunError: for a folder or mechanism that is missing, a device that this machine lacks, or a data set that has
            changed since.
    """
    from dscm.model import DSCM
    from mechanisms.runs.files import RunError
    from mechanisms.runs.folder import dataset_of
    from mechanisms.training.devices import find_device

    dscm = DSCM.load(run, find_device(device))
    dataset = dataset_of(run)
    if difference := dscm.graph.difference(dataset.graph):
        raise RunError(f"{dataset.title} is not what {run} was trained on (model against data): {difference}")
    return dscm, dataset


def answer(dscm: DSCM, dataset: CausalDataset, split: str, index: Tensor, interventions: Sequence[tuple[str, Do]],
           draws: int | None = None, temperature: float = 1.0, seed: int = 0, effect: str = "total") -> list[Column]:
    """One column for each labelled intervention on rows ``index`` ``(B,)`` of a split, with the truth where it is known.

    All columns share their draws of noise. A value drawn by ``name~marginal`` is drawn once: model and truth get the same.

    Raises:
        SchemaError: see :meth:`dscm.DSCM.counterfactual`.
    """
    import torch

    from dscm.figures.grid import Column

    observed = dataset.split(split).batch(index)
    columns = []
    for label, do in interventions:
        result = dscm.counterfactual(observed, do, draws, temperature, torch.Generator().manual_seed(seed), effect=effect)
        set_values = {name: result[name].cpu() for name in do}
        truth = dataset.true_counterfactual(split, index, set_values) if dataset.has_truth(list(do)) else None
        columns.append(Column(label, result, truth))
    return columns


def report(columns: Sequence[Column], observed: Tensor) -> str:
    """A table of what was asked: labels, L1 to the truth beside that of copying ``observed``, and extrapolations."""
    from dscm.metrics.score import mean_and_error
    from dscm.metrics.truth import image_error
    from mechanisms.runs.tables import markdown

    def error(images: Tensor, target: Tensor) -> str:
        each = image_error(images.cpu(), target)
        return "{:.2f} ± {:.2f}".format(*mean_and_error(each)) if len(each) > 1 else f"{float(each):.2f}"

    lines = []
    for column in columns:
        known = column.truth is not None
        beyond = sum(int(flags.sum()) for flags in column.answer.beyond.values())
        lines.append((column.label, error(column.answer.image, column.truth["image"]) if known else "not known",
                      error(observed, column.truth["image"]) if known else "", f"{beyond} of {len(observed)}" if beyond else "none"))
    return markdown(("intervention", "L1 to truth (of 255)", "floor: copying x", "beyond training range"), lines)


def _index(options: Options, size: int) -> list[int]:
    """The rows that are asked for.

    Raises:
        UserError: for rows that the split of ``size`` rows does not have.
    """
    where = f"the {options.split} split has {size} rows"
    if not options.rows:
        if not 1 <= options.count <= size:
            raise UserError(f"--count {options.count}: {where}; take 1..{size}")
        return list(range(options.count))
    index = listed_numbers(options.rows, "--rows")
    if wrong := [i for i in index if not 0 <= i < size]:
        raise UserError(f"--rows {options.rows}: {where}, so there is no row {wrong[0]}; take 0..{size - 1}")
    return index


def main(options: Options) -> None:
    if not options.do:
        raise UserError("nothing to ask: give at least one intervention, such as --do thickness=1.5,3")
    check_ranges(options)
    import warnings

    import torch

    from dscm.figures.grid import counterfactual_grid
    from dscm.figures.style import check_format, save_figure
    from pgm.interventions import parse_do

    check_format(options.out)
    dscm, dataset = open_run(options.run, options.device)
    generator = torch.Generator().manual_seed(options.seed)
    interventions = parse_do(options.do, dataset.graph, dataset.split("train").attributes, generator)
    index = torch.tensor(_index(options, len(dataset.split(options.split))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has a column for what lies beyond the training data
        columns = answer(dscm, dataset, options.split, index, interventions, options.draws, options.temperature, options.seed,
                         options.effect)
    observed = dataset.split(options.split).batch(index)
    save_figure(counterfactual_grid(observed, columns, dataset.graph), options.out)
    latents = f"{options.draws} posterior draws" if options.draws else "latents at their posterior mean"
    print(f"{len(index)} images of {dataset.title}'s {options.split} split, {latents}, residual temperature {options.temperature:g}\n")
    print(report(columns, observed["image"]))
    print(f"\nwrote {options.out}")


if __name__ == "__main__":
    run_command(Options, main)

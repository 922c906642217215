"""Draws a grid of counterfactuals of a run's data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.base import CausalDataset
from datasets.errors import UserError
from datasets.words import listed_numbers
from dscm.figures.grid import Column, counterfactual_grid
from dscm.figures.style import check_format, save_figure
from dscm.metrics.score import mean_and_error
from dscm.metrics.truth import image_error
from dscm.model import DSCM
from dscm.runs import open_run
from mechanisms.runs.tables import markdown
from pgm.interventions import Do, parse_do


def draw_grid(run: Path, do: Sequence[str], out: Path, split: str = "test", count: int = 8, rows: str = "", draws: int | None = None,
              temperature: float = 1.0, effect: str = "total", seed: int = 0, device: str = "auto") -> None:
    """Write the grid to ``out`` and print the table of its errors; arguments as in :class:`dscm.figures.options.Options`.

    Raises:
        UserError: for rows that the split has not, an unknown intervention, a place that cannot be written; see :func:`open_run`.
    """
    check_format(out)
    dscm, dataset = open_run(run, device)
    interventions = parse_do(do, dataset.graph, dataset.split("train").attributes, torch.Generator().manual_seed(seed))
    index = torch.tensor(_index(rows, count, split, len(dataset.split(split))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table has a column for what lies beyond the training data
        columns = answer(dscm, dataset, split, index, interventions, draws, temperature, seed, effect)
    observed = dataset.split(split).batch(index)
    save_figure(counterfactual_grid(observed, columns, dataset.graph), out)
    latents = f"{draws} posterior draws" if draws else "latents at their posterior mean"
    print(f"{len(index)} images of {dataset.title}'s {split} split, {latents}, residual temperature {temperature:g}\n")
    print(report(columns, observed["image"]))
    print(f"\nwrote {out}")


def answer(dscm: DSCM, dataset: CausalDataset, split: str, index: Tensor, interventions: Sequence[tuple[str, Do]],
           draws: int | None = None, temperature: float = 1.0, seed: int = 0, effect: str = "total") -> list[Column]:
    """One column for each labelled intervention on rows ``index`` ``(B,)`` of a split, with the truth where it is known.

    All columns share their draws of noise. A value drawn by ``name~marginal`` is drawn once: model and truth get the same.

    Raises:
        SchemaError: see :meth:`dscm.DSCM.counterfactual`.
    """
    observed = dataset.split(split).batch(index)
    columns = []
    for label, do in interventions:
        result = dscm.counterfactual(observed, do, draws, temperature, torch.Generator().manual_seed(seed), effect=effect)
        set_values = {name: result[name].cpu() for name in do}
        truth = dataset.true_counterfactual(split, index, set_values) if dataset.has_truth(list(do)) else None
        columns.append(Column(label, result, truth))
    return columns


def report(columns: Sequence[Column], observed: Tensor) -> str:
    """A table of the interventions: labels, L1 to the truth beside that of copying ``observed``, and extrapolations."""

    def error(images: Tensor, target: Tensor) -> str:
        each = image_error(images.cpu(), target)
        return "{:.2f} ± {:.2f}".format(*mean_and_error(each)) if len(each) > 1 else f"{float(each):.2f}"

    lines = []
    for column in columns:
        has_truth = column.truth is not None
        beyond = sum(int(flags.sum()) for flags in column.answer.beyond.values())
        lines.append((column.label, error(column.answer.image, column.truth["image"]) if has_truth else "not known",
                      error(observed, column.truth["image"]) if has_truth else "", f"{beyond} of {len(observed)}" if beyond else "none"))
    return markdown(("intervention", "L1 to truth (of 255)", "floor: copying x", "beyond training range"), lines)


def _index(rows: str, count: int, split: str, size: int) -> list[int]:
    """The rows that are asked for.

    Raises:
        UserError: for rows that the split of ``size`` rows does not have.
    """
    where = f"the {split} split has {size} rows"
    if not rows:
        if not 1 <= count <= size:
            raise UserError(f"--count {count}: {where}; take 1..{size}")
        return list(range(count))
    index = listed_numbers(rows, "--rows")
    if wrong := [i for i in index if not 0 <= i < size]:
        raise UserError(f"--rows {rows}: {where}, so there is no row {wrong[0]}; take 0..{size - 1}")
    return index

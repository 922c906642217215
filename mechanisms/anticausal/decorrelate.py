"""Data in which the causes of the image are independent of each other, for networks that read causes off images.

A predictor q(a_k | image) that is fitted to observations learns p(a_k) p(a_1..a_K) / p(a_k) too: where thickness and
intensity correlate at .9, it reads the one off the other, and errs on intervened images, which pair them as nature
hardly ever does. Two ways to be rid of that:

- *The true process*, where the data set knows it: rows are rendered anew under do(a_1, …, a_K), each value an
  independent draw from its own training marginal. Causes without true images stay as they are.
- *Importance resampling* of those that stay, and of all where no process is known: rows are drawn with weights
  ``w = Π_k p(a_k) / p(a_1, …, a_K)``, from a joint histogram. Under it each cause keeps its marginal. Pairs that nature
  never shows cannot be had this way: the effective sample size and what correlation is left tell how far it goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.base import CausalDataset, LazyImages, Split
from datasets.files.images import kept
from datasets.memory import check_memory
from datasets.schema import Variable
from mechanisms.training.noise import seeded

MAX_WEIGHT = 20.0  # of a row, times the mean: a few rare rows must not be all that a network sees of their kind
PER_CELL = 10  # rows that a cell of the histogram should hold on average
MAX_BINS = 12
POOR = 0.2  # effective share of rows below which resampling is called poor, …
LEFT = 0.3  # … and the correlation above which it is, because combinations that never occur cannot be drawn
_CHUNK = 4096  # rows that are rendered at once


@dataclass(frozen=True)
class Decorrelated:
    """Rows of one split with independent causes of the image, and how they were come by.

    Attributes:
        split: the rows; as many as before, times ``renderings`` where they were rendered.
        way: in words, for people and reports.
        rendered: names of the causes that were intervened on.
        resampled: names of the causes that were made independent by resampling.
        effective_size: ``(Σw)² / Σw²`` of the resampling weights, in rows; the number of rows where none are needed.
        before, after: the largest absolute correlation between columns of two different causes.
    """

    split: Split
    way: str
    rendered: tuple[str, ...]
    resampled: tuple[str, ...]
    effective_size: float
    before: float
    after: float

    @property
    def warning(self) -> str:
        """What is wrong with these data and what to do about it; empty if they are as good as can be."""
        rows = len(self.split)
        if not self.resampled or (self.effective_size >= POOR * rows and self.after <= LEFT):
            return ""
        return (f"the {self.split.name} split's {rows} rows are worth {self.effective_size:.0f} once {', '.join(self.resampled)} are "
                f"resampled to independence (correlation {self.before:.2f}, then {self.after:.2f}): predictors will be poor on images "
                "of rare combinations. Collect more of these, or give the data set a true_counterfactual")


def decorrelated(dataset: CausalDataset, split: str, seed: int = 0, renderings: int = 1) -> Decorrelated:
    """The rows of ``split`` with independent causes of the image; a function of the seed alone.

    Args:
        renderings: how often each row is rendered, where the data set knows its process.
    """
    rows, graph = dataset.split(split), dataset.graph
    names = [v.name for v in graph.image_parents]
    before = dependence(graph.image_parents, rows.attributes)
    if len(names) < 2:
        return Decorrelated(rows, "the image has a single cause", (), (), float(len(rows)), before, before)
    rendered = tuple(n for n in names if dataset.has_truth([n]))
    rendered = rendered if dataset.has_truth(rendered) else ()
    others = [graph[n] for n in names if n not in rendered]
    resampled, weights = (), torch.ones(len(rows), dtype=torch.float64)
    if len(others) > 1:
        resampled, weights = tuple(v.name for v in others), independence_weights(others, rows.attributes)
    count = len(rows) * (renderings if rendered else 1)
    check_memory(2 * count * math.prod(graph.image.shape),
                 f"--renderings {renderings} of the {split} split's {len(rows)} rows, {count:,} images,", "Take fewer")
    generator = seeded(seed, ("train", "valid", "test").index(split))
    index = resample(weights, count, generator)
    made = _rendered(dataset, split, index, rendered, generator) if rendered else chosen(rows, index)
    ways = [f"do({', '.join(rendered)}) rendered by the true process"] * bool(rendered)
    ways += [f"importance resampling of {', '.join(resampled)}"] * bool(resampled)
    effective = effective_size(weights) * len(made) / len(rows)
    return Decorrelated(made, "; ".join(ways), rendered, resampled, effective, before, dependence(graph.image_parents, made.attributes))


def _rendered(dataset: CausalDataset, split: str, index: Tensor, names: Sequence[str], generator: torch.Generator) -> Split:
    """Rows ``index`` under do(names), each value drawn from its own training marginal."""
    training = dataset.split("train").attributes
    do = {n: training[n][torch.randint(len(training[n]), (len(index),), generator=generator)] for n in names}
    images, attributes = [], {v.name: [] for v in dataset.graph.attributes}
    parts = torch.arange(len(index)).split(_CHUNK)
    for part in tqdm(parts, desc=f"{dataset.title}: independent causes, {split}", unit="chunk", delay=2, disable=len(parts) < 2):
        truth = dataset.true_counterfactual(split, index[part], {n: value[part] for n, value in do.items()})
        images.append((truth["image"] * 255).round().to(torch.uint8))
        for name, values in attributes.items():
            values.append(truth[name])
    return Split(split, torch.cat(images), {name: torch.cat(values) for name, values in attributes.items()})


# -------------------------------------------------------------------------------------------------------- weights
def independence_weights(variables: Sequence[Variable], values: Mapping[str, Tensor]) -> Tensor:
    """``w = Π_k p(a_k) / p(a_1, …, a_K)``, float64 ``(N,)`` of mean 1, from the joint histogram of the rows themselves.

    Under the weights ``w·p`` every variable keeps its marginal and all are independent, as far as the histogram tells
    them apart and every combination occurs. Continuous variables are cut at quantiles into so many equal bins that a
    cell holds 10 rows on average (2 to 12 bins). Weights above 20 times their mean are cut off, which leaves some
    dependence and bounds the variance.
    """
    count = len(next(iter(values.values())))
    classes = float(np.prod([v.cardinality for v in variables if v.discrete]))
    continuous = sum(v.continuous for v in variables)
    bins = int((count / PER_CELL / classes) ** (1 / continuous)) if continuous else 0
    bins = min(max(bins, 2), MAX_BINS)
    codes, cell, product = [], torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.float64)
    for variable in variables:
        value = values[variable.name]
        if variable.continuous:
            edges = torch.from_numpy(np.unique(np.quantile(value.double().numpy(), np.arange(1, bins) / bins)))
            value = torch.bucketize(value.double(), edges, right=True)
        code = value.unique(return_inverse=True)[1]
        codes.append(code)
        cell = (cell * (int(code.max()) + 1) + code).unique(return_inverse=True)[1]
        product *= torch.bincount(code)[code] / count
    weights = product / (torch.bincount(cell)[cell] / count)
    weights = weights / weights.mean()
    weights = weights.clamp(max=MAX_WEIGHT)
    return weights / weights.mean()


def effective_size(weights: Tensor) -> float:
    """``(Σw)² / Σw²``: how many equally weighted rows would be as informative (Kish 1965, *Survey sampling*)."""
    return float(weights.sum() ** 2 / weights.square().sum())


def resample(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` row numbers, row n about ``count·w_n/Σw`` times: systematic resampling, one random number for all.

    A row comes ⌊·⌋ or ⌈·⌉ of that many times, which no resampling with less variance can better (Kitagawa 1996); with
    equal weights and ``count`` a multiple of the rows, each comes equally often.
    """
    places = (torch.arange(count, dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)) / count
    return torch.searchsorted(weights.double().cumsum(0) / weights.double().sum(), places).clamp(max=len(weights) - 1)


def dependence(variables: Sequence[Variable], values: Mapping[str, Tensor]) -> float:
    """The largest absolute correlation between a column of one variable and one of another; 0 for a single variable.

    Columns are the unconstrained coordinate of a continuous variable and the classes of a discrete one.
    """
    columns, owners = [], []
    for k, variable in enumerate(variables):
        value = values[variable.name]
        columns.append(variable.unconstrain(value.double()).unsqueeze(1) if variable.continuous else variable.encode(value).double())
        owners += [k] * columns[-1].shape[1]
    if len(columns) < 2:
        return 0.0
    standardised = torch.cat(columns, 1)
    standardised = standardised - standardised.mean(0)
    standardised = standardised / standardised.norm(dim=0).clamp(min=1e-12)
    owner = torch.tensor(owners)
    return float((standardised.T @ standardised).abs()[owner[:, None] != owner].max())


# -------------------------------------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class _Chosen(LazyImages):
    """Images ``index`` of parts laid end to end, read when they are asked for."""

    parts: tuple[Tensor | LazyImages, ...]
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> np.ndarray | Tensor:
        place = int(self.index[row])
        for part in self.parts:
            if place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(row)


def chosen(split: Split, index: Tensor) -> Split:
    """Rows ``index`` of a split, repetitions allowed; lazy images and columns stay lazy."""
    return Split(split.name, kept(split.images, index), {name: kept(values, index) for name, values in split.attributes.items()})


def joined(first: Split, second: Split, seed: int = 0) -> Split:
    """The rows of both splits in a random order that is a function of the seed."""
    order = torch.randperm(len(first) + len(second), generator=seeded(seed))
    attributes = {name: torch.cat([values, second.attributes[name]])[order] for name, values in first.attributes.items()}
    if first.in_memory and second.in_memory:
        return Split(first.name, torch.cat([first.images, second.images])[order], attributes)
    return Split(first.name, _Chosen((first.images, second.images), order), attributes)

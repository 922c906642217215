"""Calibration: does the truth fall among K draws of the counterfactual as often as the draws themselves say?

The draws are what the model believes possible given the observation. Draws of images ``(K, B, C, H, W)`` or of a
measured attribute ``(K, B)``; every figure is in the draws' units (multiply images in [0, 1] by 255 for grey levels).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from datasets.base import CausalDataset
from datasets.schema import SchemaError
from dscm.metrics.score import Metric, Score, named
from dscm.metrics.truth import changed_pixels, image_error, inner

if TYPE_CHECKING:
    from dscm.evaluation.answers import Case
    from dscm.evaluation.inputs import MetricInputs
    from dscm.evaluation.readings import Reader, Reading

PART, RANK = "calibration", 90
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # nominal coverage of the draws' intervals, for the reliability curve
LEVEL = 0.9  # of the intervals that tables are about
HALF_LEVEL = 0.5 / 255
"""Tolerance for images in [0, 1]: the truth is known to half a grey level only."""
Method = Literal["linear", "weibull"]

_MISSING = "coverage_*, width_*, crps_*"
_EASY = "background that never varies is always covered: far above the nominal level, and no merit"
_WIDE = "wide intervals cover anything: read the width and the CRPS beside it"
_NARROW = "narrow is good only where coverage holds; a model without any doubt scores 0"
METRICS = named(
    Metric("coverage_pixel", "share of pixels whose true value lies in the central interval of the draws", "", "0.9", _EASY),
    Metric("coverage_changed_pixel", "the same for the pixels that the truth changes", "", "0.9", _WIDE,
           label="changed pixels in the draws' 90 %"),
    Metric("coverage_attribute", "share of images where the attribute measured on the true image lies in the central interval of those "
           "measured on the draws", "", "0.9", _WIDE, label="{variable} in the draws' 90 %", by_attribute=True),
    Metric("width_pixel", "mean width of the pixels' central intervals, of 255", "grey levels", "lower", _NARROW),
    Metric("width_attribute", "mean width of the attribute's central intervals", "", "lower", _NARROW,
           label="… width of that interval", by_attribute=True),
    Metric("crps_pixel", "continuous ranked probability score of the pixels' draws, of 255", "grey levels", "lower",
           "for draws without spread it is truth_l1: compare it with that", label="CRPS of the draws' pixels", short="CRPS of pixels"),
    Metric("crps_attribute", "continuous ranked probability score of the attribute's measured draws", "", "lower",
           "for draws without spread it is the absolute error",
           label="CRPS of the draws' {variable}", short="CRPS of {variable}", by_attribute=True),
)


class Ensemble:
    """K draws, sorted once for all figures.

    Args:
        draws: ``(K, B, …)``, at least two, exchangeable, of one quantity for each element of ``(B, …)``.

    All figures are means per image, ``(B,)``. With ``where``, ``(B, …)`` booleans, they are means over the elements
    that it marks, ``(B',)`` for the images that have any.

    >>> ensemble = Ensemble(torch.tensor([[1.0], [2.0], [3.0]]))
    >>> ensemble.coverage(torch.tensor([2.5]), level=0.5), ensemble.crps(torch.tensor([2.0]))
    (tensor([1.]), tensor([0.]))

    Raises:
        SchemaError: for fewer than two draws.
    """

    def __init__(self, draws: Tensor) -> None:
        if draws.ndim < 2 or len(draws) < 2:
            raise SchemaError(f"draws of shape {tuple(draws.shape)}: calibration needs (K, B, …) with at least 2 draws; raise --draws")
        if draws.device.type == "cpu":  # NumPy sorts many short columns four times as fast
            self.draws = torch.from_numpy(np.sort(draws.detach().numpy(), axis=0))
        else:
            self.draws = draws.sort(0).values

    def interval(self, level: float = 0.9, method: Method = "linear") -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval, each ``(B, …)``; see :func:`positions`."""
        return tuple(self._at(position) for position in positions(len(self.draws), level, method))

    def _at(self, position: float) -> Tensor:
        below = min(int(position), len(self.draws) - 2)
        return torch.lerp(self.draws[below], self.draws[below + 1], position - below)

    def coverage(self, target: Tensor, level: float = 0.9, tolerance: float = 0.0, where: Tensor | None = None,
                 method: Method = "linear") -> Tensor:
        """Share of elements with ``low − tolerance ≤ target ≤ high + tolerance``.

        The interval is closed, so draws that are all equal to the truth cover it. Pixels need the tolerance
        :data:`HALF_LEVEL`: where all draws are black to within rounding, a black truth would lie outside of them.
        """
        low, high = self.interval(level, method)
        return per_image(((low - tolerance <= target) & (target <= high + tolerance)).float(), where)

    def width(self, level: float = 0.9, where: Tensor | None = None, method: Method = "linear") -> Tensor:
        """Mean width of the central intervals."""
        low, high = self.interval(level, method)
        return per_image(high - low, where)

    def crps(self, target: Tensor, where: Tensor | None = None) -> Tensor:
        """``mean_k |x_k − y| − Σ_{i<j} |x_i − x_j| / (K(K − 1))``: the fair CRPS of an ensemble (Ferro, 2014).

        An unbiased estimate of ``E|X − y| − ½E|X − X'|``, whatever K (so it may fall below 0); without spread it is the
        absolute error. A gap between neighbours k and k+1 of the sorted draws is part of k(K − k) pairs: O(K log K).
        """
        count = len(self.draws)
        score = torch.zeros_like(self.draws[0])
        for k in range(count):  # one draw at a time: the differences of all of them would double the memory
            score += (self.draws[k] - target).abs() / count
            if k:
                score -= (self.draws[k] - self.draws[k - 1]) * (k * (count - k) / (count * (count - 1)))
        return per_image(score, where)


def positions(draws: int, level: float, method: Method = "linear") -> tuple[float, float]:
    """Positions, from 0 to K − 1 among the sorted draws, of the (1 − level)/2 and (1 + level)/2 quantiles.

    ``linear`` (type 7 of Hyndman & Fan, 1996; NumPy's default) puts p at ``(K − 1)·p``. ``weibull`` (type 6) puts it at
    ``(K + 1)·p − 1``, where a value exchangeable with the draws falls below with probability p.

    Raises:
        SchemaError: for a level outside (0, 1) or an unknown method.
    """
    if not 0 < level < 1:
        raise SchemaError(f"level={level}: the nominal coverage of an interval lies between 0 and 1")
    if method not in ("linear", "weibull"):
        raise SchemaError(f"unknown quantile method {method!r}; valid are linear, weibull")
    low = (draws - 1) * (1 - level) / 2 if method == "linear" else (draws + 1) * (1 - level) / 2 - 1
    low = max(low, 0.0)
    return low, draws - 1 - low


def expected_coverage(draws: int, level: float = 0.9, method: Method = "linear") -> float:
    """Coverage that K draws reach which are exactly right: the figure to be near to.

    The truth is then exchangeable with the draws, so it lies below the j-th of them with probability j/(K + 1), and
    between two neighbours with 1/(K + 1). An interval whose ends are at positions a and b therefore covers
    ``(b − a)/(K + 1)``: exactly where a and b are whole numbers or the density is level, otherwise to less than a
    neighbour's share (K = 32, level .9, a normal distribution: .850 where this says .845). For ``linear`` it is
    ``level·(K − 1)/(K + 1)``, less than the level; for ``weibull`` the level itself, if K ≥ (1 + level)/(1 − level).
    """
    low, high = positions(draws, level, method)
    return (high - low) / (draws + 1)


def per_image(values: Tensor, where: Tensor | None = None) -> Tensor:
    """``(B, …) → (B,)`` means, or ``(B',)`` over the elements ``where``, for the images that have any."""
    values = values.reshape(len(values), -1)
    if where is None:
        return values.mean(1)
    where = where.reshape(len(where), -1)
    counted = where.sum(1)
    return ((values * where).sum(1) / counted)[counted > 0]


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every answer whose truth is known, of a model that can draw several."""
    with_truth = {read.case.name: read for read in inputs.readings if read.case.truth and read.truth}
    if not inputs.config.draws:
        inputs.missing[_MISSING] = "no draws were asked for; give --draws 32"
    elif not inputs.model.capabilities.draws:
        inputs.missing[_MISSING] = "the model gives one answer only: its counterfactual takes no draws"
    elif with_truth:
        for question, draws in inputs.evaluator.drawn([read.case.question for read in with_truth.values()]):
            read = with_truth[question.name]
            yield from calibration_scores(read.case, draws, inputs.observed["image"], read.truth, inputs.real, inputs.border,
                                          inputs.reader, inputs.dataset)


def calibration_scores(case: Case, draws: Tensor, observed: Tensor, truth_read: Reading, real: Reading, border: int, reader: Reader,
                       dataset: CausalDataset) -> Iterator[Score]:
    """Whether the truth lies among the draws ``(K, n, C, H, W)`` as often as it should, pixels and measured attributes.

    Of a measured attribute, the truth is the measurement on the true image: a measurement's own bias is not the model's.
    """
    count, size = len(draws), draws.shape[1]
    x, truth = (inner(images[:size], border) for images in (observed, case.truth["image"]))
    pixels, changed = Ensemble(inner(draws, border) * 255), changed_pixels(x, truth)
    about = {"intervention": case.name, "settings": {"draws": count, "border": border}}
    for level in LEVELS:
        share = pixels.coverage(truth * 255, level, HALF_LEVEL * 255, method="weibull")
        yield METRICS["coverage_pixel"].score(share, intervention=case.name, **_interval(count, level, border=border))
        if changed.any():
            share = pixels.coverage(truth * 255, level, HALF_LEVEL * 255, changed, "weibull")
            yield METRICS["coverage_changed_pixel"].score(share, intervention=case.name, **_interval(count, level, border=border))
    yield METRICS["width_pixel"].score(pixels.width(LEVEL, method="weibull"), intervention=case.name,
                                       settings={"draws": count, "level": LEVEL, "border": border})
    yield METRICS["crps_pixel"].score(pixels.crps(truth * 255), floors={"identity": image_error(x, truth), "truth": 0.0}, **about)
    measured = reader.measure(draws.flatten(0, 1))
    for name, values in measured.items():
        variable = dataset.schema[name]
        if variable.discrete:
            continue
        target, ensemble = truth_read.measured[name][:size], Ensemble(values.view(count, size))
        about_attribute = {"intervention": case.name, "variable": name}
        for level in LEVELS:
            share = ensemble.coverage(target, level, method="weibull")
            yield METRICS["coverage_attribute"].score(share, **about_attribute, **_interval(count, level))
        yield METRICS["width_attribute"].score(ensemble.width(LEVEL, method="weibull"), unit=variable.unit, **about_attribute,
                                               settings={"draws": count, "level": LEVEL})
        floors = {"identity": (real.measured[name][:size] - target).abs(), "truth": 0.0}
        yield METRICS["crps_attribute"].score(ensemble.crps(target), unit=variable.unit, settings={"draws": count}, floors=floors,
                                              **about_attribute)


def _interval(draws: int, level: float, **settings: float) -> dict[str, object]:
    """What a coverage is near to if the draws are right: the level, or less where they are too few for it."""
    return {"settings": {"draws": draws, "level": level, **settings}, "better": f"{level:g}",
            "floors": {"ideal": expected_coverage(draws, level, "weibull")}}

"""All metrics by name, in the order of tables, and how values become a :class:`Score`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from datasets.errors import valid_are
from dscm.metrics import commutativity, cycles, effectiveness, likelihood, minimality, realism, truth
from dscm.metrics import coverage as calibration
from dscm.metrics.score import Metric, Score, mean_and_error
from mechanisms.runs.files import RunError

FAMILIES = (truth, cycles, commutativity, effectiveness, minimality, realism, likelihood, calibration)
METRICS: Mapping[str, Metric] = {metric.name: metric for family in FAMILIES for metric in family.METRICS}


def summarise(metric: str, values: Tensor | float, *, count: int | None = None, intervention: str = "", variable: str = "",
              unit: str | None = None, better: str | None = None, settings: Mapping[str, float | str] | None = None,
              floors: Mapping[str, Tensor | float] | None = None) -> Score:
    """A :class:`Score` with the catalogue's unit and direction.

    Args:
        metric: a name of :data:`METRICS`.
        values: per image, ``(B,)``: their mean and its standard error over images (None for a single one); or a figure
            that is no such mean.
        count: of images, where ``values`` is one figure.
        unit, better: if not the catalogue's: the unit of an attribute, the nominal level of an interval.
        floors: per image, ``(B,)``, or one figure each.

    Raises:
        RunError: for an unknown metric, no image at all, NaN.
    """
    if metric not in METRICS:
        raise RunError(f"unknown metric {metric!r}; {valid_are(METRICS, metric)}")
    known = METRICS[metric]
    if isinstance(values, Tensor) and values.ndim:
        count, (value, error) = len(values), _mean(metric, values)
    else:
        value, error = float(values), None
    if count is None:
        raise RunError(f"{metric}: one figure does not say how many images it is about; give count")
    levels = {name: _mean(metric, floor)[0] if isinstance(floor, Tensor) and floor.ndim else float(floor)
              for name, floor in (floors or {}).items()}
    return Score(metric, value, error, count, known.unit if unit is None else unit, known.better if better is None else better,
                 intervention, variable, dict(settings or {}), levels)


def _mean(metric: str, values: Tensor) -> tuple[float, float | None]:
    if not len(values):
        raise RunError(f"{metric}: there is no image that it is about")
    return mean_and_error(values) if len(values) > 1 else (float(values[0]), None)

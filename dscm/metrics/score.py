"""One figure with its error, its floors and its settings: a row of ``metrics.json`` and of every table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from mechanisms.runs.files import RunError
from mechanisms.runs.tables import finite

FLOORS = ("identity", "truth", "real", "ideal")
"""What a figure stands beside: copying x; the true counterfactual image; real images; a model that is exactly right."""


@dataclass(frozen=True)
class Metric:
    """What a metric means, for tables, ``metrics.json`` and docs/metrics.md.

    Attributes:
        name: as in :attr:`Score.metric`.
        meaning: in one line.
        unit: "" where it has none, or where it is that of the attribute that is read.
        better: ``lower``, ``higher``, or the number to be near to, as text.
        trap: how the figure can be had without a good counterfactual, in one line.
        label: of its row in tables, with ``{variable}`` and ``{intervention}``; "" where it stands in ``metrics.json`` only.
        short: what the figure of floors calls it, with ``{variable}``; "" where it has no place between two floors.
        repeats: the setting that counts repetitions, ``cycles`` or ``steps``; such metrics have a table of their own.
        by_attribute: whether its rows stand after the others, together with those of the same attribute.
    """

    name: str
    meaning: str
    unit: str
    better: str
    trap: str
    label: str = ""
    short: str = ""
    repeats: str = ""
    by_attribute: bool = False

    def score(self, values: Tensor | float, *, count: int | None = None, intervention: str = "", variable: str = "",
              unit: str | None = None, better: str | None = None, settings: Mapping[str, float | str] | None = None,
              floors: Mapping[str, Tensor | float] | None = None) -> Score:
        """A :class:`Score` of this metric, with its unit and direction.

        Args:
            values: per image, ``(B,)``: their mean and its standard error over images (None for a single one); or a figure
                that is no such mean.
            count: of images, where ``values`` is one figure.
            unit, better: if not the metric's: the unit of an attribute, the nominal level of an interval.
            floors: per image, ``(B,)``, or one figure each.

        >>> import torch
        >>> Metric("l1", "error", "of 255", "lower", "").score(torch.tensor([1.0, 3.0]), floors={"identity": 4.0}).value
        2.0

        Raises:
            RunError: for no image at all, or NaN.
        """
        if isinstance(values, Tensor) and values.ndim:
            count, (value, error) = len(values), _mean(self.name, values)
        else:
            value, error = float(values), None
        if count is None:
            raise RunError(f"{self.name}: one figure does not say how many images it is about; give count")
        levels = {name: _mean(self.name, floor)[0] if isinstance(floor, Tensor) and floor.ndim else float(floor)
                  for name, floor in (floors or {}).items()}
        return Score(self.name, value, error, count, self.unit if unit is None else unit, self.better if better is None else better,
                     intervention, variable, dict(settings or {}), levels)


def named(*metrics: Metric) -> dict[str, Metric]:
    """``{name: metric}``, in this order: the ``METRICS`` of a family."""
    return {metric.name: metric for metric in metrics}


@dataclass(frozen=True)
class Score:
    """One figure: the value of one metric.

    Attributes:
        metric: its name in the catalogue.
        value: the figure; may be infinite (the PSNR of an exact image), never NaN.
        error: its standard error over images; None where the figure is no mean over images.
        count: number of images that it is about.
        unit: of value, error and floors.
        better: ``lower``, ``higher``, or a number to be near to as text ("0.9").
        intervention: ``do(thickness)``, or "" where it concerns none.
        variable: the attribute that is read, or "".
        settings: what it depends on: ``{"temperature": 0.1, "cycles": 10}``.
        floors: the same figure for any of :data:`FLOORS`.

    Raises:
        RunError: for NaN, a count below 1, an unknown floor or direction.
    """

    metric: str
    value: float
    error: float | None
    count: int
    unit: str = ""
    better: str = "lower"
    intervention: str = ""
    variable: str = ""
    settings: Mapping[str, float | str] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {"value": self.value, "error": self.error, **{f"the floor {name}": value for name, value in self.floors.items()}}
        for name, number in numbers.items():
            if number is not None and math.isnan(number):
                raise RunError(f"{self.title}: {name} is not a number. Look for NaN in the model's images; what cannot be computed "
                               "belongs under 'missing'")
        if self.count < 1:
            raise RunError(f"{self.title}: count={self.count}; a figure is about at least one image")
        unknown = sorted(set(self.floors) - set(FLOORS))
        if unknown:
            raise RunError(f"{self.title}: unknown floor {', '.join(unknown)}; valid are {', '.join(FLOORS)}")
        if self.better not in ("lower", "higher") and not _is_number(self.better):
            raise RunError(f"{self.title}: better={self.better!r}; valid are 'lower', 'higher', or a number as text")

    @property
    def title(self) -> str:
        """Metric, intervention, variable and settings in words: what tells this figure from the others of one evaluation."""
        named = [f"of {self.variable}"] if self.variable else []
        named += [f"under {self.intervention}"] if self.intervention else []
        settings = ", ".join(f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"
                          for name, value in self.settings.items())
        return " ".join([self.metric, *named]) + (f" ({settings})" if settings else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON, every key present; an infinite number is the text "inf" or "-inf"."""
        state = asdict(self)
        for name in ("value", "error"):
            state[name] = finite(state[name])
        state["settings"] = dict(state["settings"])
        state["floors"] = {name: finite(value) for name, value in state["floors"].items()}
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], where: str = "metrics.json") -> Score:
        """What :meth:`to_dict` gave.

        Raises:
            RunError: for a key that is missing, unknown or of the wrong type; the message names it and ``where``.
        """
        if not isinstance(state, Mapping):
            raise RunError(f"{where}: a score is an object with keys, got {state!r}")
        known = [f.name for f in fields(cls)]
        wrong = [f"unknown key {key!r}" for key in state if key not in known]
        wrong += [f"no key {key!r}" for key in known if key not in state]
        if not wrong:
            wrong = [f"{key}={state[key]!r}" for key, right in _CHECKS.items() if not right(state[key])]
        if wrong:
            raise RunError(f"{where}: not a score ({'; '.join(wrong)}). Make the file again: python -m dscm.evaluate")
        error = None if state["error"] is None else float(state["error"])
        return cls(**{**state, "value": float(state["value"]), "error": error, "settings": dict(state["settings"]),
                      "floors": {name: float(value) for name, value in state["floors"].items()}})


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error over independent values ``(B,)``, at least two."""
    values = values.detach().cpu().double()  # not every device has double precision
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def _mean(metric: str, values: Tensor) -> tuple[float, float | None]:
    if not len(values):
        raise RunError(f"{metric}: there is no image that it is about")
    return mean_and_error(values) if len(values) > 1 else (float(values[0]), None)


def _is_number(value: Any) -> bool:
    """A number, or the text of one; true and false are none."""
    try:
        return not isinstance(value, bool) and not math.isnan(float(value))
    except (TypeError, ValueError):
        return False


def _is_figure(value: Any) -> bool:
    return value in ("inf", "-inf") or (isinstance(value, (int, float)) and _is_number(value))


_CHECKS = {
    **dict.fromkeys(("metric", "unit", "better", "intervention", "variable"), lambda value: isinstance(value, str)),
    "value": _is_figure,
    "error": lambda value: value is None or _is_figure(value),
    "count": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "settings": lambda value: isinstance(value, Mapping) and all(isinstance(v, str) or _is_figure(v) for v in value.values()),
    "floors": lambda value: isinstance(value, Mapping) and all(map(_is_figure, value.values())),
}

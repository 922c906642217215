"""Comparing figures over seeds: which model is best, and by how much another falls behind."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mechanisms.runs.tables import mean_over


def loss(value: float, better: str) -> float:
    """How far from good a value is: the less the better, whatever the metric's direction."""
    if better in ("lower", "higher"):
        return value if better == "lower" else -value
    return abs(value - float(better))


def best_of(values: Mapping[str, Mapping[int, float]], better: str) -> str | None:
    """The model that is best on average; None without any."""
    return min(values, key=lambda name: loss(mean_over(list(values[name].values()))[0], better), default=None)


def difference(values: Mapping[int, float], best: Mapping[int, float], better: str) -> tuple[float, float | None] | None:
    """How much worse than the best on the same seeds, and the standard error of that; None without a common seed."""
    common = [seed for seed in values if seed in best]
    apart = [loss(values[seed], better) - loss(best[seed], better) for seed in common]
    if not apart or not all(map(math.isfinite, apart)):
        return None
    return mean_over(apart)

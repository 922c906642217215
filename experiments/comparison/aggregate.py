"""From the evaluations of several methods and seeds to one row for each quantity of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dscm.evaluation.evaluation import Evaluation
from dscm.metrics.score import Score
from experiments.metrics.seeds import best_of, difference
from mechanisms.runs.tables import mean_over

Results = Mapping[str, Mapping[int, Evaluation]]  # method → seed → its evaluation
Settings = tuple[tuple[str, float | str], ...]


@dataclass(frozen=True)
class Quantity:
    """What is measured: a metric with the intervention, the attribute that is read and the settings that it depends on."""

    metric: str
    intervention: str = ""
    variable: str = ""
    settings: Settings = ()

    @classmethod
    def of(cls, score: Score) -> Quantity:
        return cls(score.metric, score.intervention, score.variable, tuple(sorted(score.settings.items())))


@dataclass(frozen=True)
class Aggregate:
    """One quantity of one method, over seeds.

    Attributes:
        mean: over seeds.
        error: its standard error over seeds; with one seed, over images. None where there is none.
        over: what ``error`` is about.
        values: seed → value.
        images: that each value is about.
        floors: the same quantity of copying x, of the truth, of real images, of an exactly right model.
        behind: mean difference to the best mechanism on the same seeds, positive where this one is worse, and its
            standard error; None for bounds and where there is no order.
    """

    method: str
    quantity: Quantity
    unit: str
    better: str
    mean: float
    error: float | None
    over: Literal["seeds", "images", ""]
    values: Mapping[int, float]
    images: int
    floors: Mapping[str, float]
    behind: tuple[float, float | None] | None = None


def aggregate(results: Results, bounds: Sequence[str] = ()) -> list[Aggregate]:
    """Rows in the order of quantities, and within each in the order of methods.

    Args:
        bounds: methods that are compared with, but never the best.
    """
    scores: dict[Quantity, dict[str, dict[int, Score]]] = {}
    for method, seeds in results.items():
        for seed, evaluation in seeds.items():
            for score in evaluation.scores:
                scores.setdefault(Quantity.of(score), {}).setdefault(method, {})[seed] = score
    rows = []
    for quantity, of_methods in scores.items():
        values = {name: {seed: score.value for seed, score in of_seeds.items()} for name, of_seeds in of_methods.items()}
        better = next(iter(next(iter(of_methods.values())).values())).better
        best = best_of({name: v for name, v in values.items() if name not in bounds}, better)
        for name, of_seeds in of_methods.items():
            first = next(iter(of_seeds.values()))
            mean, error = mean_over(list(values[name].values()))
            over = "seeds" if error is not None else ""
            if len(of_seeds) == 1 and first.error is not None:
                error, over = first.error, "images"
            behind = None if best is None or name in bounds else difference(values[name], values[best], better)
            rows.append(Aggregate(name, quantity, first.unit, better, mean, error, over, values[name], first.count, dict(first.floors),
                                  behind))
    return rows

"""From the evaluations of several contestants and seeds to one row for each figure of each contestant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dscm.evaluation.evaluation import Evaluation
from dscm.metrics.score import Score
from experiments.metrics.seeds import best_of, difference
from mechanisms.runs.tables import mean_over

Results = Mapping[str, Mapping[int, Evaluation]]  # contestant → seed → its evaluation
Settings = tuple[tuple[str, float | str], ...]


@dataclass(frozen=True)
class Figure:
    """What is measured: a metric with the intervention, the attribute that is read and the settings that it depends on."""

    metric: str
    intervention: str = ""
    variable: str = ""
    settings: Settings = ()

    @classmethod
    def of(cls, score: Score) -> Figure:
        return cls(score.metric, score.intervention, score.variable, tuple(sorted(score.settings.items())))


@dataclass(frozen=True)
class Row:
    """One figure of one contestant.

    Attributes:
        mean: over seeds.
        error: its standard error over seeds; with one seed, over images. None where there is none.
        over: what ``error`` is about.
        values: seed → value.
        images: that each value is about.
        floors: the same figure of copying x, of the truth, of real images, of an exactly right model.
        behind: mean difference to the best mechanism on the same seeds, positive where this one is worse, and its
            standard error; None for bounds and where there is no order.
    """

    contestant: str
    figure: Figure
    unit: str
    better: str
    mean: float
    error: float | None
    over: Literal["seeds", "images", ""]
    values: Mapping[int, float]
    images: int
    floors: Mapping[str, float]
    behind: tuple[float, float | None] | None = None


def aggregate(results: Results, bounds: Sequence[str] = ()) -> list[Row]:
    """Rows in the order of figures, and within each in the order of contestants.

    Args:
        bounds: contestants that are compared with, but never the best.
    """
    scores: dict[Figure, dict[str, dict[int, Score]]] = {}
    for contestant, seeds in results.items():
        for seed, evaluation in seeds.items():
            for score in evaluation.scores:
                scores.setdefault(Figure.of(score), {}).setdefault(contestant, {})[seed] = score
    rows = []
    for figure, contestants in scores.items():
        values = {name: {seed: score.value for seed, score in found.items()} for name, found in contestants.items()}
        better = next(iter(next(iter(contestants.values())).values())).better
        best = best_of({name: v for name, v in values.items() if name not in bounds}, better)
        for name, found in contestants.items():
            first = next(iter(found.values()))
            mean, error = mean_over(list(values[name].values()))
            over = "seeds" if error is not None else ""
            if len(found) == 1 and first.error is not None:
                error, over = first.error, "images"
            behind = None if best is None or name in bounds else difference(values[name], values[best], better)
            rows.append(Row(name, figure, first.unit, better, mean, error, over, values[name], first.count, dict(first.floors), behind))
    return rows


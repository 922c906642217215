"""One column of a stress test's tables: a figure of every algorithm over seeds, what is best, and differences to ERM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from scipy.stats import t as student

from experiments.metrics.seeds import best_of, difference
from experiments.stress.run import MAJORITY
from mechanisms.runs.tables import mean_over, percent

NOTHING, REFERENCE = "–", "erm"

Values = Mapping[int | None, float]  # seed → value, in [0, 1]


@dataclass(frozen=True)
class Column:
    """One figure of every algorithm: algorithm → seed → value."""

    title: str
    better: str
    values: Mapping[str, Values]

    @cached_property
    def best(self) -> str | None:
        return best_of({name: v for name, v in self.values.items() if name != MAJORITY}, self.better)

    def cell(self, name: str) -> str:
        """Mean ± standard error in percent; bold for the best, if it has several seeds, and for what is not significantly
        behind it on the same ones."""
        if name not in self.values:
            return NOTHING
        text = percent(*mean_over(list(self.values[name].values())))
        return f"**{text}**" if name != MAJORITY and len(self.values) > 2 and self._near(name) else text

    def _near(self, name: str) -> bool:
        if len(self.values[self.best]) < 2:
            return False  # of one seed nobody knows what is significant
        if name == self.best:
            return True
        mean, error = difference(self.values[name], self.values[self.best], self.better) or (1.0, None)
        common = len(self.values[name].keys() & self.values[self.best].keys())
        return mean <= 0 or (error is not None and mean < student.ppf(0.975, common - 1) * error)

    def to_reference(self, name: str) -> tuple[float, float | None] | None:
        """Mean of the difference to ERM on the same seeds, and its standard error; None without a common seed."""
        if name in (REFERENCE, MAJORITY) or name not in self.values or REFERENCE not in self.values:
            return None
        return difference(self.values[name], self.values[REFERENCE], "lower")

"""Does a stress test made with a learned DSCM predict the true one? The same classifiers, rows and values in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from dscm.figures.style import INK, PALE, page, tidy
from experiments.stress.run import MAJORITY, MODEL, OBSERVED, TRUTH, Stressed
from mechanisms.runs.tables import mean_over

COLORS = ("#1f6fb2", "#d9730d", "#3d8b4f", "#8659a8", "#a8324a", "#3aa0a0", "#8c6d31", "#5c6670")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FEWEST = 3  # points that a rank correlation needs to say anything


@dataclass(frozen=True)
class Pair:
    """Accuracy of one algorithm under one stress, mean over seeds: on true images, on those of the model, and as observed."""

    algorithm: str
    stress: str
    true: float
    model: float
    observed: float

    @property
    def apart(self) -> float:
        return self.model - self.true


@dataclass(frozen=True)
class Agreement:
    """How well the model's stress test agrees with the true one.

    Attributes:
        pairs: a pair for each algorithm and stress that both sources have.
        spearman: rank correlation over all pairs; None for fewer than three, or where one side is constant.
        within: mean over stresses of the rank correlation between algorithms: whether the model tells them apart, not
            only hard stresses from easy ones. None where no stress has three algorithms of different accuracy.
        difference: mean absolute difference of accuracy.
        bias: mean difference, model minus truth: positive where the model's test is too easy.
        floor, floor_spearman: difference and rank correlation of a model that returns every image as it was observed.
        changed: share of the rows in which a stress sets something to what it was not, mean over stresses.
    """

    pairs: tuple[Pair, ...]
    spearman: float | None
    within: float | None
    difference: float
    bias: float
    floor: float
    floor_spearman: float | None
    changed: float

    @property
    def worst(self) -> Pair:
        """The largest disagreement."""
        return max(self.pairs, key=lambda pair: abs(pair.apart))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "worst": asdict(self.worst)}

    def in_words(self) -> str:
        """Two or three sentences."""
        worst, algorithms, stresses = self.worst, {p.algorithm for p in self.pairs}, {p.stress for p in self.pairs}
        rank = (f"Spearman's rank correlation is {self.spearman:.3f}" if self.spearman is not None else
                "there is no rank correlation, for want of points that differ")
        inside = (f" Among algorithms under one and the same stress it is {self.within:.2f} on average." if self.within is not None else
                  "")
        return (f"Over {len(self.pairs)} points ({len(algorithms)} algorithm{'s' * (len(algorithms) > 1)} × {len(stresses)} stresses) of "
                f"accuracy on the model's images against true images, {rank}, and the mean absolute difference is "
                f"{100 * self.difference:.1f} points (the model's test is {abs(100 * self.bias):.1f} points too "
                f"{'easy' if self.bias > 0 else 'hard'} on average).{inside} Largest disagreement: {worst.algorithm} under {worst.stress}, "
                f"{100 * worst.true:.1f} in truth, {100 * worst.model:.1f} by the model. To beat: a model that returns every image as it "
                f"was observed has {self._floor()}; a stress changes {100 * self.changed:.0f} % of the rows on average.")

    def _floor(self) -> str:
        rank = "no rank correlation" if self.floor_spearman is None else f"a rank correlation of {self.floor_spearman:.3f}"
        return f"{rank} and a mean absolute difference of {100 * self.floor:.1f} points"


def agreement(stressed: Stressed) -> Agreement | None:
    """Of all points that both sources have, each question once; None if there are none."""
    stresses = {stress.name: stress for stress in stressed.different()}
    intervened: dict[tuple[str, str], dict[str, list[float]]] = {}  # (algorithm, stress) → source → accuracy of each seed
    observed: dict[str, list[float]] = {}
    for p in stressed.points:
        if p.source == OBSERVED:
            observed.setdefault(p.algorithm, []).append(p.measured.values["accuracy"])
        elif p.algorithm != MAJORITY and p.stress in stresses:
            intervened.setdefault((p.algorithm, p.stress), {}).setdefault(p.source, []).append(p.measured.values["accuracy"])
    pairs = tuple(Pair(algorithm, stress, *(mean_over(values)[0] for values in (by_source[TRUTH], by_source[MODEL], observed[algorithm])))
                  for (algorithm, stress), by_source in intervened.items() if len(by_source) == 2)
    if not pairs:
        return None
    names = list(dict.fromkeys(p.stress for p in pairs))
    inside = [rank for stress in names if (rank := rank_correlation([p for p in pairs if p.stress == stress])) is not None]
    return Agreement(pairs, rank_correlation(pairs), mean_over(inside)[0] if inside else None,
                     mean_over([abs(p.apart) for p in pairs])[0], mean_over([p.apart for p in pairs])[0],
                     mean_over([abs(p.observed - p.true) for p in pairs])[0], rank_correlation(pairs, lambda p: p.observed),
                     mean_over([stressed.changed(stresses[name]) for name in names])[0])


def rank_correlation(pairs: Sequence[Pair], predicted: Callable[[Pair], float] = lambda p: p.model) -> float | None:
    """Spearman's, of a prediction with the truth, mean ranks for ties; None for fewer than three pairs, or where one side is constant."""
    from scipy.stats import spearmanr

    true, other = [p.true for p in pairs], [predicted(p) for p in pairs]
    if len(pairs) < _FEWEST or len(set(true)) < 2 or len(set(other)) < 2:
        return None
    return float(spearmanr(true, other).statistic)


def agreement_figure(agreed: Agreement) -> Figure:
    """Accuracy on true images against accuracy on the model's; on the diagonal they agree."""
    figure = page(6.2, 4.4)
    axes = figure.add_axes((0.11, 0.12, 0.58, 0.8))
    tidy(axes)
    values = [100 * v for p in agreed.pairs for v in (p.true, p.model)]
    low, high = max(-1.0, min(values) - 4), min(102.0, max(values) + 4)
    axes.plot((low, high), (low, high), color=PALE, linewidth=0.9, zorder=0)
    axes.fill_between((low, high), (low - 2, high - 2), (low + 2, high + 2), color=PALE, alpha=0.15, linewidth=0, zorder=0)
    for k, algorithm in enumerate(dict.fromkeys(p.algorithm for p in agreed.pairs)):
        points = [p for p in agreed.pairs if p.algorithm == algorithm]
        marker = MARKERS[(k + k // len(COLORS)) % len(MARKERS)]  # after the last colour, the same colours with other markers
        axes.scatter([100 * p.true for p in points], [100 * p.model for p in points], s=22, color=COLORS[k % len(COLORS)], marker=marker,
                     alpha=0.8, linewidths=0, label=algorithm)
    worst = agreed.worst
    below = worst.model < worst.true  # named in the corner that the points leave free
    place, side = ((0.97, 0.04), "right") if below else ((0.03, 0.95), "left")
    axes.annotate(f"{worst.algorithm}, {worst.stress}", (100 * worst.true, 100 * worst.model), xytext=place,
                  textcoords="axes fraction", fontsize=6.5, color=INK, ha=side,
                  arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkB": 3})
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel("accuracy on true intervened images, %", fontsize=8)
    axes.set_ylabel("accuracy on the model's, %", fontsize=8)
    rank = "" if agreed.spearman is None else f"Spearman {agreed.spearman:.3f}, "
    axes.set_title(f"{rank}mean absolute difference {100 * agreed.difference:.1f} points (as observed: {100 * agreed.floor:.1f})",
                   fontsize=8, loc="left", color=INK)
    axes.legend(loc="upper left", bbox_to_anchor=(1.03, 1), frameon=False, fontsize=7.5, title="band: ± 2 points", title_fontsize=7)
    return figure

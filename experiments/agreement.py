"""Does a stress test made with a learned DSCM predict the true one? The same classifiers, rows and values in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from dscm.figures import INK, PALE, page, tidy
from experiments.aggregate import mean_over
from experiments.stress_test import MAJORITY, MODEL, TRUTH, Point

COLORS = ("#1f6fb2", "#d9730d", "#3d8b4f", "#8659a8", "#a8324a", "#3aa0a0", "#8c6d31", "#5c6670")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FEWEST = 3  # points that a rank correlation needs to say anything


@dataclass(frozen=True)
class Pair:
    """Accuracy of one algorithm under one stress, mean over seeds: on true images, and on those of the model."""

    algorithm: str
    stress: str
    true: float
    model: float

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
    """

    pairs: tuple[Pair, ...]
    spearman: float | None
    within: float | None
    difference: float
    bias: float

    @property
    def worst(self) -> Pair:
        """The largest disagreement."""
        return max(self.pairs, key=lambda pair: abs(pair.apart))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "worst": asdict(self.worst)}

    def told(self) -> str:
        """In two or three sentences."""
        worst, algorithms, stresses = self.worst, {p.algorithm for p in self.pairs}, {p.stress for p in self.pairs}
        rank = (f"Spearman's rank correlation is {self.spearman:.3f}" if self.spearman is not None else
                "there is no rank correlation, for want of points that differ")
        inside = (f" Among algorithms under one and the same stress it is {self.within:.2f} on average." if self.within is not None else
                  "")
        return (f"Over {len(self.pairs)} points ({len(algorithms)} algorithm{'s' * (len(algorithms) > 1)} × {len(stresses)} stresses) of "
                f"accuracy on the model's images against true images, {rank}, and the mean absolute difference is "
                f"{100 * self.difference:.1f} points (the model's test is {abs(100 * self.bias):.1f} points too "
                f"{'easy' if self.bias > 0 else 'hard'} on average).{inside} Largest disagreement: {worst.algorithm} under {worst.stress}, "
                f"{100 * worst.true:.1f} in truth, {100 * worst.model:.1f} by the model.")


def agreement(points: Sequence[Point]) -> Agreement | None:
    """Of all points that both sources have; None if there are none."""
    seen: dict[tuple[str, str], dict[str, list[float]]] = {}
    for p in points:
        if p.algorithm != MAJORITY and p.source in (TRUTH, MODEL):
            seen.setdefault((p.algorithm, p.stress), {}).setdefault(p.source, []).append(p.measured.values["accuracy"])
    pairs = tuple(Pair(algorithm, stress, mean_over(found[TRUTH])[0], mean_over(found[MODEL])[0])
                  for (algorithm, stress), found in seen.items() if len(found) == 2)
    if not pairs:
        return None
    inside = [rank for stress in dict.fromkeys(p.stress for p in pairs)
              if (rank := rank_correlation([p for p in pairs if p.stress == stress])) is not None]
    return Agreement(pairs, rank_correlation(pairs), mean_over(inside)[0] if inside else None,
                     mean_over([abs(p.apart) for p in pairs])[0], mean_over([p.apart for p in pairs])[0])


def rank_correlation(pairs: Sequence[Pair]) -> float | None:
    """Spearman's, with mean ranks for ties; None for fewer than three pairs, or where one side is constant."""
    from scipy.stats import spearmanr

    true, model = [p.true for p in pairs], [p.model for p in pairs]
    if len(pairs) < _FEWEST or len(set(true)) < 2 or len(set(model)) < 2:
        return None
    return float(spearmanr(true, model).statistic)


def agreement_figure(found: Agreement) -> Figure:
    """Accuracy on true images against accuracy on the model's; on the diagonal they agree."""
    figure = page(6.2, 4.4)
    axes = figure.add_axes((0.11, 0.12, 0.58, 0.8))
    tidy(axes)
    values = [100 * v for p in found.pairs for v in (p.true, p.model)]
    low, high = max(-1.0, min(values) - 4), min(102.0, max(values) + 4)
    axes.plot((low, high), (low, high), color=PALE, linewidth=0.9, zorder=0)
    axes.fill_between((low, high), (low - 2, high - 2), (low + 2, high + 2), color=PALE, alpha=0.15, linewidth=0, zorder=0)
    for k, algorithm in enumerate(dict.fromkeys(p.algorithm for p in found.pairs)):
        own = [p for p in found.pairs if p.algorithm == algorithm]
        marker = MARKERS[(k + k // len(COLORS)) % len(MARKERS)]  # after the last colour, the same colours with other markers
        axes.scatter([100 * p.true for p in own], [100 * p.model for p in own], s=22, color=COLORS[k % len(COLORS)], marker=marker,
                     alpha=0.8, linewidths=0, label=algorithm)
    worst = found.worst
    below = worst.model < worst.true  # told in the corner that the points leave free
    place, side = ((0.97, 0.04), "right") if below else ((0.03, 0.95), "left")
    axes.annotate(f"{worst.algorithm}, {worst.stress}", (100 * worst.true, 100 * worst.model), xytext=place,
                  textcoords="axes fraction", fontsize=6.5, color=INK, ha=side,
                  arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkB": 3})
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel("accuracy on true intervened images, %", fontsize=8)
    axes.set_ylabel("accuracy on the model's, %", fontsize=8)
    rank = "" if found.spearman is None else f"Spearman {found.spearman:.3f}, "
    axes.set_title(f"{rank}mean absolute difference {100 * found.difference:.1f} points", fontsize=8, loc="left", color=INK)
    axes.legend(loc="upper left", bbox_to_anchor=(1.03, 1), frameon=False, fontsize=7.5, title="band: ± 2 points", title_fontsize=7)
    return figure

"""Two evaluations of one model on the same questions, before and after more training: a table, and what has become worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dscm.metrics.score import Score
from mechanisms.runs.tables import markdown

SHOWN = ("truth_l1", "effectiveness_measured", "effectiveness_predicted", "effectiveness_accuracy", "composition_l1", "reversibility_l1",
         "free_energy")
TRUTH = "truth_l1"


def paired(before: Iterable[Score], after: Iterable[Score]) -> Iterator[tuple[Score, Score]]:
    """The scores that say the same of both, in the order of ``after``."""
    earlier = {score.title: score for score in before}
    return ((earlier[score.title], score) for score in after if score.title in earlier)


def change(before: Score, after: Score) -> tuple[float, float | None]:
    """By how much the figure rose, and that in standard errors of the difference; None where an error is not known.

    The standard error is √(e₁² + e₂²), as of two independent samples. Both are about the same images, so that the true
    one is smaller: what is called significant here is.
    """
    rise = after.value - before.value
    if before.error is None or after.error is None:
        return rise, None
    error = math.hypot(before.error, after.error)
    return rise, rise / error if error > 0 else (math.copysign(math.inf, rise) if rise else 0.0)


def table(before: Iterable[Score], after: Iterable[Score]) -> str:
    """Figures before and after, side by side, of the metrics that counterfactual training is about."""
    rows = []
    for old, new in paired(before, after):
        if new.metric in SHOWN:
            rise, errors = change(old, new)
            rows.append([new.title, new.unit, _figure(old), _figure(new), f"{rise:+.3g}", "" if errors is None else f"{errors:+.1f}"])
    return markdown(["score", "unit", "before", "after", "change", "in standard errors"], rows)


def summary(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The table of two lists of :meth:`Score.to_dict`, with the warnings below it; and the warnings."""
    old, new = ([Score.from_dict(state, "the evaluation") for state in states] for states in (before, after))
    worse = worsened(old, new)
    has_truth = any(score.metric == TRUTH for score in new)
    verdict = [f"WARNING: {line}" for line in worse] or [
        "the error to the true image has grown under no intervention" if has_truth else "the true images are not known: what is predicted "
        "from an image may improve while the image gets worse"]
    return "\n".join([table(old, new), "", *verdict]), worse


def worsened(before: Iterable[Score], after: Iterable[Score]) -> list[str]:
    """One line for each intervention whose error to the true image has grown."""
    lines = []
    for old, new in paired(before, after):
        rise, errors = change(old, new)
        if new.metric == TRUTH and rise > 0:
            by = "" if errors is None else f", {errors:.1f} standard errors"
            lines.append(f"the error to the TRUE image under {new.intervention} is WORSE: {old.value:.3f} before, {new.value:.3f} after "
                         f"({rise:+.3f} {new.unit}{by})")
    return lines


def _figure(score: Score) -> str:
    return f"{score.value:.4g}" + ("" if score.error is None else f" ± {score.error:.2g}")

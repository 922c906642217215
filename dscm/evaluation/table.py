"""An evaluation as text: the error to the truth first, each figure beside its floors, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dscm.evaluation.evaluation import Evaluation
from dscm.metrics.coverage import LEVEL
from dscm.metrics.registry import metrics
from dscm.metrics.score import Score
from mechanisms.runs.tables import markdown

HEADER = ("metric", "", "value", "copying x", "true image", "real images", "images")
ARROWS = {"lower": "↓", "higher": "↑"}


def format_table(evaluation: Evaluation) -> str:
    """Everything that one reads first, as Markdown tables that also line up as plain text."""
    scores, about = evaluation.scores, evaluation.about
    parts = [introduction(evaluation)]
    labelled = [s for s in scores if _label(s) and not _repeats(s)]
    questions = [f"do({variable})" for variable in about["interventions"]["variables"]]
    for name in dict.fromkeys(s.intervention for s in labelled if s.intervention in questions):
        parts.append(f"## {name}\n\n" + markdown(HEADER, question_rows(scores, name)))
    if cycles := cycle_table(scores):
        parts.append("## Again and again: L1 to x\n\n" + markdown(*cycles))
    if others := [(_label(s), f"{figure(s)} {unit(s)}".rstrip(), str(s.count)) for s in labelled if s.intervention not in questions]:
        parts.append("## The model as a whole\n\n" + markdown(("metric", "value", "images"), others))
    if evaluation.missing:
        parts.append("## Not computed\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in evaluation.missing.items()))
    return "\n\n".join(parts) + f"\n\nComputed in {sum(about['seconds'].values()):.0f} s."


def introduction(evaluation: Evaluation) -> str:
    """The questions, and how to read the figures."""
    about, settings = evaluation.about, evaluation.about["settings"]
    border = next((s.settings["border"] for s in evaluation.scores if s.settings.get("border")), 0)
    padded = f"; image distances leave out the {border} outermost pixels on each side" if border else ""
    draws = ""
    if evaluation.find("coverage_attribute"):
        wide = "as widely as the image mechanism errs" if settings.get("calibrated") else "by their latents alone (see dscm.calibrate)"
        draws = f"\nThe {settings['draws']} draws vary {wide}."
    return (f"{about['model']}: {about['count']} images of {about['dataset']}'s {about['split']} split, interventions of seed "
            f"{about['seed']}, residual temperature {settings['temperature']:g}{padded}.\n"
            "± is the standard error over images. Floors: the same figure for copying x, for the true counterfactual image, and for real "
            "images against their own attributes." + draws)


def question_rows(scores: Iterable[Score], intervention: str) -> list[tuple[str, ...]]:
    """Rows under :data:`HEADER` of one question."""
    rows, by_name = [], metrics()
    shown = [s for s in scores if s.intervention == intervention and _label(s) and not _repeats(s)
             and s.settings.get("level", LEVEL) == LEVEL]
    for score in sorted(shown, key=lambda s: s.variable if by_name[s.metric].by_attribute else ""):
        label = _label(score) + (f", {unit(score)}" if score.unit else "")
        digits = _digits(score.value, score.error)
        floors = [_number(score.floors[name], digits) if name in score.floors else "" for name in ("identity", "truth", "real")]
        rows.append((label, direction(score), figure(score), *floors, str(score.count)))
    return rows


def _label(score: Score) -> str:
    """What its row is called; "" where it stands in the file only."""
    metric = metrics().get(score.metric)
    return "" if metric is None else metric.label.format(variable=score.variable, intervention=score.intervention)


def _repeats(score: Score) -> str:
    """The setting that counts its repetitions; "" where it has none."""
    metric = metrics().get(score.metric)
    return "" if metric is None else metric.repeats


def direction(score: Score) -> str:
    """↓, ↑, or the number to be near to: of draws that are exactly right."""
    if score.better in ARROWS:
        return ARROWS[score.better]
    return f"→ {score.floors.get('ideal', float(score.better)):.2f}"


def cycle_table(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]] | None:
    """Composition and reversibility: a row for each number of cycles or steps, a column for each residual temperature.

    Where images have a border that scores leave out, the last column is over the whole image, as published figures are.
    """
    cycled = [s for s in scores if _repeats(s)]
    if not cycled:
        return None
    temperatures = list(dict.fromkeys(s.settings.get("temperature") for s in cycled))
    border = max(s.settings["border"] for s in cycled)
    columns = [(t, border) for t in temperatures] + [(t, 0) for t in temperatures if border]
    named = ["value" if t is None else f"temperature {t:g}" + ("" if b == border else ", whole") for t, b in columns]
    by_row: dict[str, dict[tuple, Score]] = {}
    for s in sorted(cycled, key=lambda s: s.metric):
        repeats, number = _repeats(s), s.settings[_repeats(s)]
        row = f"{_label(s)}, {number:g} {repeats if number > 1 else repeats[:-1]}"
        by_row.setdefault(row, {})[s.settings.get("temperature"), s.settings["border"]] = s
    rows = [[row, *(figure(cells[c]) if c in cells else "" for c in columns), str(next(iter(cells.values())).count)]
            for row, cells in by_row.items()]
    return ["", *named, "images"], rows


def figure(score: Score) -> str:
    """Value and standard error in the digits that the error warrants."""
    digits = _digits(score.value, score.error)
    return _number(score.value, digits) + (f" ± {_number(score.error, digits)}" if score.error is not None else "")


def unit(score: Score) -> str:
    """The unit as tables show it."""
    return "of 255" if score.unit == "grey levels" else score.unit


def _digits(value: float, error: float | None) -> int:
    if not math.isfinite(value):
        return 0
    scale = error if error else abs(value) / 100
    return 2 if scale < 1e-6 else min(4, max(0, 1 - math.floor(math.log10(scale))))


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else ("∞" if value > 0 else "−∞")

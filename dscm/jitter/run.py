"""Calibrates the draws of a run."""

from __future__ import annotations

from pathlib import Path

from datasets.errors import UserError
from dscm.evaluation.questions import draw_questions
from dscm.evaluation.readings import Reader
from dscm.jitter.spread import FILE, Calibration, calibrate, mechanism_hash
from dscm.runs import find_predictors, open_run
from mechanisms.image.registry import FOLDER

_BATCH = 256


def calibrate_run(run: Path, count: int = 500, seed: int = 0, device: str = "auto") -> Calibration:
    """Calibrate the image mechanism of a run folder on ``count`` validation images and leave ``calibration.json`` there.

    Raises:
        UserError: see :func:`dscm.runs.open_run`; where no attribute can be read off an image.
    """
    dscm, dataset = open_run(run, device)
    questions = draw_questions(dataset, "valid", min(count, len(dataset.split("valid"))), seed)
    observed = dataset.split("valid").batch(questions.index)
    measures = bool(dataset.measure(observed["image"][:1]))
    predictors = None if measures else find_predictors(run, str(dscm.device))
    if not measures and predictors is None:
        raise UserError(f"{dataset.title} measures nothing on an image, and {run} has no predictors to read one; train them: "
                        f"python -m mechanisms.predictors --run {run}")
    reader = Reader(dataset, predictors, _BATCH)
    spread = calibrate(dscm.counterfactual, dscm.graph, observed, {q.variable: q.values for q in questions.questions},
                       reader.measure if measures else lambda images: reader(images).predicted)
    how = "measured" if measures else "predicted"
    calibration = Calibration(spread, mechanism_hash(run / FOLDER), {**questions.about(), "readings": how})
    calibration.save(run)
    return calibration


def calibrate_and_print(run: Path, count: int = 500, seed: int = 0, device: str = "auto") -> None:
    """:func:`calibrate_run`, and its spreads on the screen."""
    calibration = calibrate_run(run, count, seed, device)
    print(f"Standard deviation of what counterfactual images show about what they were asked for ({calibration.about['readings']}, "
          f"{calibration.about['count']} validation images):")
    for intervened, spread in calibration.spread.items():
        print(f"  do({intervened}): " + (", ".join(f"{name} {value:.3g}" for name, value in spread.items() if value) or "nothing"))
    print(f"wrote {run / FILE}")

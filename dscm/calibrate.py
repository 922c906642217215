"""``python -m dscm.calibrate``: lets draws of counterfactual images vary as much as the image mechanism errs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datasets.errors import UserError
from datasets.ranges import Sample, Seed, check_ranges
from mechanisms.runs.command import run_command

if TYPE_CHECKING:
    from dscm.jitter import Calibration


_BATCH = 256


@dataclass(frozen=True)
class Options:
    """Estimate on the validation split how far counterfactual images miss the values asked for, and keep it in the run folder.

    Draws (dscm.counterfactual --draws, dscm.evaluate --draws) then vary accordingly; no true counterfactual is used.
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms."""
    count: Sample[int] = 500
    """Validation images; fewer if the split is smaller."""
    seed: Seed[int] = 0
    """Of the interventions."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""


def calibrate_run(options: Options) -> Calibration:
    """Calibrate the image mechanism of a run folder and leave ``calibration.json`` there.

    Raises:
        UserError: see :func:`dscm.counterfactual.open_run`; where no attribute can be read off an image.
    """
    from dscm.counterfactual import open_run
    from dscm.evaluate import find_predictors
    from dscm.evaluation.questions import draw_questions
    from dscm.evaluation.readings import Reader
    from dscm.jitter import Calibration, calibrate, mechanism_hash
    from mechanisms.image.registry import FOLDER

    check_ranges(options)
    dscm, dataset = open_run(options.run, options.device)
    questions = draw_questions(dataset, "valid", min(options.count, len(dataset.split("valid"))), options.seed)
    observed = dataset.split("valid").batch(questions.index)
    measures = bool(dataset.measure(observed["image"][:1]))
    predictors = None if measures else find_predictors(options.run, str(dscm.device))
    if not measures and predictors is None:
        raise UserError(f"{dataset.title} measures nothing on an image, and {options.run} has no predictors to read one; train them: "
                        f"python -m mechanisms.predictors --run {options.run}")
    reader = Reader(dataset, predictors, _BATCH)
    spread = calibrate(dscm.counterfactual, dscm.graph, observed, {q.variable: q.values for q in questions.questions},
                       reader.measure if measures else lambda images: reader(images).predicted)
    how = "measured" if measures else "predicted"
    calibration = Calibration(spread, mechanism_hash(options.run / FOLDER), {**questions.about(), "readings": how})
    calibration.save(options.run)
    return calibration


def main(options: Options) -> None:
    calibration = calibrate_run(options)
    print(f"Standard deviation of what counterfactual images show about what they were asked for ({calibration.about['readings']}, "
          f"{calibration.about['count']} validation images):")
    for intervened, spread in calibration.spread.items():
        print(f"  do({intervened}): " + (", ".join(f"{name} {value:.3g}" for name, value in spread.items() if value) or "nothing"))
    print(f"wrote {options.run / 'calibration.json'}")


if __name__ == "__main__":
    run_command(Options, main)

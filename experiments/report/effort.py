"""How much each stage of the quickstart does. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Effort:
    """Budgets of the trainings, and how many images each stage looks at; more than a split has are as many as it has.

    Attributes:
        attributes, image, predictors: fields of :class:`mechanisms.training.config.TrainingConfig` that replace the usual ones.
        words: the image mechanism's budget as a heading says it.
        scored: test images that are scored under each intervention.
        calibrated: validation images that draws are calibrated on.
        draws: of each counterfactual, in the metrics of calibration, of ``drawn`` images; so many also go through cycles.
        classifiers: fields of :class:`experiments.training.options.TrainingFlags` that replace the usual ones.
        seeds: of each classifier.
        stressed: test images that classifiers are stressed with.
    """

    attributes: Mapping[str, int]
    image: Mapping[str, float]
    predictors: Mapping[str, float]
    words: str
    scored: int
    calibrated: int
    draws: int
    drawn: int
    seeds: int
    stressed: int
    classifiers: Mapping[str, int] = field(default_factory=dict)


SMOKE = Effort({"steps": 20, "validations": 2}, {"steps": 6, "validations": 2}, {"steps": 6}, "a few updates", scored=16, calibrated=16,
               draws=4, drawn=4, seeds=1, stressed=16, classifiers={"steps": 4, "validations": 1})


def full(minutes: float, scored: int) -> Effort:
    """The usual effort: so many minutes for the image mechanism, and so many images scored."""
    return Effort({}, {"minutes": minutes}, {"minutes": 0.4}, f"{minutes:g} minutes", scored, calibrated=256, draws=32,
                  drawn=64, seeds=3, stressed=256)

"""Effectiveness: are the counterfactual's attributes, read off the image, those that the model claims for it?

Read by the data set's own measurement or by predictors. Continuous attributes, and classes that are measured, are scored
by :func:`dscm.metrics.truth.attribute_error`; predicted classes by :func:`mechanisms.anticausal.class_scores.class_scores`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from datasets.base import CausalDataset
from dscm.metrics.score import Metric, Score, named
from dscm.metrics.truth import attribute_error, unit_of
from mechanisms.anticausal.class_scores import class_scores

if TYPE_CHECKING:
    from dscm.evaluation.inputs import MetricInputs
    from dscm.evaluation.readings import CaseReadings, Reading

RANK = 50
_CLASSES = "effectiveness_accuracy, effectiveness_f1, effectiveness_auroc"
_FLOOR = "saturated: near the reader's own error on true images it says no more; read the floor"

METRICS = named(
    Metric("effectiveness_measured", "error of the attribute measured on the counterfactual image (share of wrong classes if discrete)", "",
           "lower", "a measurement looks at what it measures and nothing else: any image of the right thickness is right",
           label="{variable} measured on x*", short="{variable} measured"),
    Metric("effectiveness_predicted", "mean absolute error of the attribute that a predictor reads off the counterfactual image", "",
           "lower", f"{_FLOOR}; a predictor trained on correlated attributes guesses one from another",
           label="{variable} predicted from x*", short="{variable} predicted"),
    Metric("effectiveness_accuracy", "share of counterfactual images whose predicted class is the intended one", "", "higher", _FLOOR,
           label="{variable} predicted, accuracy", short="{variable}, accuracy"),
    Metric("effectiveness_f1", "F1 of the predicted class, mean over the classes that occur", "", "higher", _FLOOR,
           label="{variable} predicted, F1", short="{variable}, F1"),
    Metric("effectiveness_auroc", "area under the ROC curve, each class against the rest, mean over the classes that occur", "", "higher",
           f"{_FLOOR}; blind to a threshold that is off", label="{variable} predicted, AUROC", short="{variable}, AUROC"),
)


def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every answer, as far as something reads its attributes."""
    if not inputs.real.measured:
        inputs.missing["effectiveness_measured"] = f"{inputs.dataset.title} measures nothing on images; define measure(images)"
    if inputs.predictors is None:
        inputs.missing[f"effectiveness_predicted, {_CLASSES}"] = f"no predictors; {inputs.how_to_train_predictors}"
    elif not any(v.discrete for v in inputs.predictors.variables):
        inputs.missing[_CLASSES] = "no cause of the image is discrete, so there is no class to tell"
    for read in inputs.readings:
        yield from effectiveness_scores(read, inputs.real, inputs.observed, inputs.dataset)


def effectiveness_scores(read: CaseReadings, real: Reading, observed: Mapping[str, Tensor], dataset: CausalDataset) -> Iterator[Score]:
    """Attributes read off the counterfactual images against those they should show.

    Floors: the same reading of x (identity) and of the true image (truth) against the same target, and of x against the
    attributes that were observed (real), which is the reader's own error.
    """
    case, target = read.case, read.case.target
    about = {"intervention": case.name, "settings": {"target": "own" if case.truth is None else "true"}}
    for name, values in read.answer.measured.items():
        variable, measured = dataset.schema[name], {"identity": real.measured, **({"truth": read.truth.measured} if read.truth else {})}
        floors = {floor: attribute_error(variable, other[name], target[name]) for floor, other in measured.items()}
        floors["real"] = attribute_error(variable, real.measured[name], observed[name])
        yield METRICS["effectiveness_measured"].score(attribute_error(variable, values, target[name]), variable=name,
                                                     unit=unit_of(variable), floors=floors, **about)
    readings = {"identity": real, **({"truth": read.truth} if read.truth else {})}
    for name, values in read.answer.predicted.items():
        variable = dataset.schema[name]
        if variable.discrete:
            yield from _class_scores(name, read.answer, readings, target[name], observed[name], about)
            continue
        floors = {floor: attribute_error(variable, other.predicted[name], target[name]) for floor, other in readings.items()}
        floors["real"] = attribute_error(variable, real.predicted[name], observed[name])
        yield METRICS["effectiveness_predicted"].score(attribute_error(variable, values, target[name]), variable=name,
                                                      unit=unit_of(variable), floors=floors, **about)


def _class_scores(name: str, answer: Reading, readings: Mapping[str, Reading], target: Tensor, observed: Tensor,
                  about: Mapping[str, object]) -> Iterator[Score]:
    ours = class_scores(answer.probabilities[name], target)
    floors = {floor: class_scores(read.probabilities[name], target) for floor, read in readings.items()}
    floors["real"] = class_scores(readings["identity"].probabilities[name], observed)
    yield METRICS["effectiveness_accuracy"].score(ours.correct, variable=name, floors={k: f.correct for k, f in floors.items()}, **about)
    for metric in ("f1", "auroc"):
        computed = {floor: value for floor, scores in floors.items() if (value := getattr(scores, metric)) is not None}
        if (value := getattr(ours, metric)) is not None:
            yield METRICS[f"effectiveness_{metric}"].score(value, count=len(target), variable=name, floors=computed, **about)

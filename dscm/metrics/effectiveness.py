"""Effectiveness: are the counterfactual's attributes, read off the image, those that the model claims for it?

Read by the data set's own measurement or by predictors. Continuous attributes, and classes that are measured, are scored
by :func:`dscm.metrics.truth.attribute_error`; predicted classes by :func:`mechanisms.anticausal.class_scores.class_scores`.
"""

from __future__ import annotations

from dscm.metrics.score import Metric

_FLOOR = "saturated: near the reader's own error on true images it says no more; read the floor"

METRICS = (
    Metric("effectiveness_measured", "error of the attribute measured on the counterfactual image (share of wrong classes if discrete)", "",
           "lower", "a measurement looks at what it measures and nothing else: any image of the right thickness is right"),
    Metric("effectiveness_predicted", "mean absolute error of the attribute that a predictor reads off the counterfactual image", "",
           "lower", f"{_FLOOR}; a predictor trained on correlated attributes guesses one from another"),
    Metric("effectiveness_accuracy", "share of counterfactual images whose predicted class is the intended one", "", "higher", _FLOOR),
    Metric("effectiveness_f1", "F1 of the predicted class, mean over the classes that occur", "", "higher", _FLOOR),
    Metric("effectiveness_auroc", "area under the ROC curve, each class against the rest, mean over the classes that occur", "", "higher",
           f"{_FLOOR}; blind to a threshold that is off"),
)

"""Scores of classes and readings, against scikit-learn and at their known points."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from datasets.schema import SchemaError, Variable
from dscm.metrics.truth import attribute_error
from mechanisms.anticausal.class_scores import class_scores
from mechanisms.training.noise import seeded
from tests.errors import naming


@pytest.mark.parametrize("classes", [2, 5])
def test_class_scores_agree_with_scikit_learn(classes):
    for seed in range(5):
        target = torch.randint(0, classes, (80,), generator=seeded(seed))
        probabilities = torch.softmax(torch.randn(80, classes, generator=seeded(seed, 1)) + torch.eye(classes)[target], 1)
        scores = class_scores(probabilities, target)
        assert scores.absent == () and scores.correct.mean() == (probabilities.argmax(1) == target).float().mean()
        assert scores.f1 == pytest.approx(f1_score(target, probabilities.argmax(1), average="macro"), abs=1e-6)
        areas = [roc_auc_score(target == k, probabilities[:, k]) for k in range(classes)]
        assert scores.auroc == pytest.approx(np.mean(areas), abs=1e-6)


def test_class_scores_at_their_known_points():
    target = torch.arange(12) % 3
    assert class_scores(torch.eye(3)[target], target)[1:] == (1.0, 1.0, ())
    wrong = class_scores(torch.eye(3)[(target + 1) % 3], target)
    assert not wrong.correct.any() and wrong.f1 == 0 and wrong.auroc < 0.5
    constant = class_scores(torch.tensor([[0.6, 0.3, 0.1]]).expand(12, 3), target)
    assert constant.correct.mean() == pytest.approx(1 / 3) and constant.auroc == pytest.approx(0.5) and constant.f1 == pytest.approx(1 / 6)


def test_classes_that_do_not_occur_have_no_vote_and_are_named():
    target = torch.tensor([0, 2, 0, 2, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert class_scores(torch.eye(4)[target], target)[1:] == (1.0, 1.0, (1, 3))
        alone = class_scores(torch.eye(4)[torch.tensor([1, 1, 0])], torch.tensor([1, 1, 1]))
    assert alone.auroc is None and alone.absent == (0, 2, 3) and alone.f1 == pytest.approx(0.8)  # precision 1, recall 2/3


@pytest.mark.parametrize("target, message", [([0, 1, 3], "3 0..2"), ([0, -1, 0], "-1 0..2"), ([0, 1], "(3, 3) (2,) (B, K) (B,)")])
def test_class_scores_refuse_what_does_not_fit(target, message):
    with pytest.raises(SchemaError, match=naming(message)):
        class_scores(torch.eye(3), torch.tensor(target))


def test_readings_are_scored_in_physical_units():
    age, sex = Variable("age", "positive"), Variable("sex", "binary")
    assert attribute_error(age, torch.tensor([3.0, 1.0]), torch.tensor([5.0, 1.0])).tolist() == [2.0, 0.0]
    assert attribute_error(sex, torch.tensor([1, 0]), torch.tensor([1, 1])).tolist() == [0, 1]

"""Confidence with and without a foreground: torchmetrics as reference, counts by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional import classification

from experiments.augmenters.regions import inside, rectangles
from experiments.stress.ood import MEANINGS, TITLES, confidence, ood_scores, without_foreground
from mechanisms.runs.files import RunError
from tests.errors import naming


@pytest.mark.parametrize(("decimals", "apart"), [(1, 1.0), (6, 0.3), (0, -0.5)])
def test_as_torchmetrics_has_it(decimals, apart):
    generator = torch.Generator().manual_seed(0)
    known, strange = ((torch.randn(n, generator=generator, dtype=torch.float64) + shift).round(decimals=decimals)
                      for n, shift in ((300, apart), (200, 0.0)))
    found = ood_scores(known, strange)
    scores, labels = torch.cat([known, strange]).sigmoid(), (torch.arange(500) < 300).long()
    expected = {"ood_auroc": classification.binary_auroc(scores, labels),
                "ood_aupr": classification.binary_average_precision(scores, labels),
                "ood_fpr95": 1 - classification.binary_specificity_at_sensitivity(scores, labels, min_sensitivity=0.95)[0]}
    assert found.keys() == MEANINGS.keys() == TITLES.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize(("known", "strange", "passing"), [
    (range(1, 21), [1.0, 2.0, 3.0, 0.0], 0.5),  # 19 of 20 are at least 2
    ([5.0] * 20, [5.0, 4.0], 0.5), ([1.0, 2.0], [0.5, 0.6], 0.0), ([0.0, 1.0], [0.0, 7.0], 1.0)])
def test_share_that_passes_by_hand(known, strange, passing):
    assert ood_scores(torch.tensor(list(known), dtype=torch.float64), torch.tensor(strange))["ood_fpr95"] == passing


def test_extremes():
    low, high = torch.arange(30.0), torch.arange(100.0, 130.0)
    assert ood_scores(high, low) == {"ood_auroc": 1.0, "ood_aupr": 1.0, "ood_fpr95": 0.0}
    assert ood_scores(low, high)["ood_auroc"] == 0 and ood_scores(low, high)["ood_fpr95"] == 1
    assert ood_scores(torch.zeros(30), torch.zeros(30)) == {"ood_auroc": 0.5, "ood_aupr": 0.5, "ood_fpr95": 1.0}
    with pytest.raises(RunError, match=naming("0 30")):
        ood_scores(torch.zeros(0), low)


def test_confidence_orders_as_the_greatest_probability():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(confidence(logits).argsort(), logits.double().softmax(1).amax(1).argsort())
    sure = torch.tensor([[60.0, 0.0], [50.0, 0.0]])  # both probabilities are rounded to 1
    assert confidence(sure)[0] > confidence(sure)[1]


@pytest.mark.parametrize("fill", ["mean", "tile"])
def test_only_the_rectangle_of_the_foreground_goes(fill):
    images, masks = torch.rand(3, 3, 12, 12), torch.zeros(3, 12, 12, dtype=torch.bool)
    masks[:, 3:6, 4], masks[:, 4, 3:8] = True, True
    gone, box = without_foreground(images, masks, torch.zeros(3).long(), fill), inside(rectangles(masks), 12, 12)[:, None]
    box = box.expand(-1, 3, -1, -1)
    assert torch.equal(gone[~box], images[~box]) and not torch.isin(gone[box], images[box]).any()

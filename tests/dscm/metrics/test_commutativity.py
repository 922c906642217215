"""Commutativity, of answers whose order is known to matter or not."""

from __future__ import annotations

import torch

from dscm.metrics.commutativity import commutativity
from dscm.metrics.truth import image_error


def test_commutativity(pair):
    observed, truth = pair
    assert all(not error.any() for error in commutativity(truth, truth, truth))
    orders, first, second = commutativity(observed, truth, truth)
    assert torch.equal(orders, first) and torch.equal(orders, image_error(observed, truth)) and not second.any()
    swapped = commutativity(truth, observed, truth)
    assert torch.equal(swapped.orders, orders) and torch.equal(swapped.second, first)

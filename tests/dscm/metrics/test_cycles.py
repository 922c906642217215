"""Composition and reversibility, at their known points."""

from __future__ import annotations

import pytest
import torch

from datasets.schema import SchemaError
from dscm.metrics.composition import composition
from dscm.metrics.reversibility import reversibility
from dscm.metrics.truth import image_error
from tests.errors import naming


def test_cycles_of_the_identity_and_of_an_exact_inverse_are_nothing(pair):
    observed, _ = pair
    assert {n: error.tolist() for n, error in composition(observed, lambda x: x).items()} == {n: [0] * 6 for n in (1, 2, 10)}
    there_and_back = reversibility(observed, lambda x: 1 - x.flip(-1), lambda x: (1 - x).flip(-1))
    assert list(there_and_back) == [2, 10] and all(float(error.max()) < 1e-4 for error in there_and_back.values())


def test_cycles_of_a_constant_and_of_a_drift(pair):
    observed, _ = pair
    grey = composition(observed, lambda x: torch.full_like(x, 0.5))
    assert all(torch.equal(error, image_error(torch.full_like(observed, 0.5), observed)) for error in grey.values())
    drift = composition(torch.zeros(3, 1, 4, 4), lambda x: x + 2 / 255)
    assert {n: error.tolist() for n, error in drift.items()} == {n: pytest.approx([2 * n] * 3) for n in (1, 2, 10)}
    wander = reversibility(torch.zeros(3, 1, 4, 4), lambda x: x + 3 / 255, lambda x: x - 2 / 255, steps=(2, 4, 10))
    assert {n: error.tolist() for n, error in wander.items()} == {2: pytest.approx([1] * 3), 4: pytest.approx([2] * 3),
                                                                 10: pytest.approx([5] * 3)}


def test_each_cycle_is_computed_once_and_in_order(pair):
    observed, _ = pair
    calls = []

    def note(name: str):
        return lambda x: (calls.append(name), x)[1]

    composition(observed, note("f"), cycles=(10, 1, 2))
    assert calls == ["f"] * 10
    calls.clear()
    reversibility(observed, note("f"), note("b"))
    assert calls == ["f", "b"] * 5


def test_refuses_cycles_that_are_none(pair):
    for cycles in ((), (0, 1), (-1,)):
        with pytest.raises(SchemaError, match=naming(f"cycles={list(cycles)}")):
            composition(pair[0], lambda x: x, cycles)
    for steps in ((), (1,), (2, 3), (0,)):
        with pytest.raises(SchemaError, match=naming(f"steps={list(steps)} 2")):
            reversibility(pair[0], lambda x: x, lambda x: x, steps)

"""Networks that do not fit into memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datasets.errors import UserError
from mechanisms.runs.fitting import fitting
from tests.errors import naming


def test_sizes_that_do_not_fit_are_refused_while_the_network_is_built(monkeypatch):
    monkeypatch.setattr("mechanisms.runs.fitting.memory", lambda: 4 * 5 * 1000)
    with fitting("--hidden 30"):
        nn.Linear(30, 30)
    with pytest.raises(UserError, match=naming("--hidden 40 31.25 KiB 19.53")):
        with fitting("--hidden 40"):
            nn.Linear(40, 40)
    nn.Linear(40, 40)  # outside nothing is counted


@pytest.mark.parametrize("width", [2**16, 10**9, 10**12])
def test_what_cannot_be_allocated_at_all_is_told_in_the_same_words(width):
    with pytest.raises(UserError, match=naming(f"--hidden {width}")):
        with fitting(f"--hidden {width}", 100):
            nn.Linear(width, width)


def test_other_errors_and_random_numbers_stay():
    torch.manual_seed(0)
    plain = nn.Linear(3, 3).weight
    torch.manual_seed(0)
    with fitting("a layer"):
        assert torch.equal(nn.Linear(3, 3).weight, plain)
    with pytest.raises(RuntimeError, match="shapes"), fitting("a layer"):
        torch.ones(2, 3) @ torch.ones(2, 3)

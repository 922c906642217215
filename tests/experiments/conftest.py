"""The toy data set as a file, and a run of every algorithm on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.toy import PLAIN, TOY, command


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return str(path)


@pytest.fixture(scope="session")
def trained(toy, tmp_path_factory) -> Path:
    """Every algorithm that a network without maps can do, two seeds, with true counterfactuals."""
    run = tmp_path_factory.mktemp("trained")
    command(toy, run, "--algorithm", ",".join(PLAIN), "--seeds", "2", "--truth", "--set", "dfr.samplings=2")
    return run

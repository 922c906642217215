"""What all commands share: a misspelt flag is an error that lists the valid ones."""

import subprocess
import sys

import pytest

from mechanisms.command import flags
from pgm.train import Options


def test_flags_are_listed_with_those_of_groups():
    assert {"--dataset", "--run", "--learning-rate", "--bins", "--resume"} <= set(flags(Options))


@pytest.mark.parametrize("module", ["pgm.train", "dscm.counterfactual", "experiments.quickstart"])
def test_misspelt_flag_lists_the_valid_ones(module):
    done = subprocess.run([sys.executable, "-m", module, "--sede", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "--sede" in done.stderr + done.stdout
    assert "valid flags: " in done.stderr and "--seed" in done.stderr.split("valid flags: ")[1]


def test_both_spellings_of_a_flag_are_accepted():
    for flag in ("--learning-rate", "--learning_rate"):
        command = [sys.executable, "-m", "pgm.train", flag, "1", "--steps", "1", "--epochs", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and "exactly one budget" in done.stderr

"""What all commands share: a misspelt flag is an error that lists the valid ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.training.options import Options as Classifiers
from mechanisms.runs.command import flags
from pgm.train import Options


def test_flags_are_listed_with_those_of_groups():
    assert {"--dataset", "--run", "--learning-rate", "--bins", "--resume"} <= set(flags(Options))
    assert {"--network", "--backbone"} <= set(flags(Classifiers))  # two names of one


@pytest.mark.parametrize("module", ["pgm.train", "dscm.counterfactual", "experiments.quickstart"])
def test_misspelt_flag_lists_the_valid_ones(module):
    done = subprocess.run([sys.executable, "-m", module, "--sede", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "--sede" in done.stderr + done.stdout
    assert "valid flags: " in done.stderr and "--seed" in done.stderr.split("valid flags: ")[1]


WARNING = """
import warnings
from dataclasses import dataclass
from mechanisms.runs.command import run_command

@dataclass(frozen=True)
class Options:
    "Warn."

def warn(options):
    for _ in range(2):
        warnings.warn("twice", stacklevel=2)
        warnings.warn("of a kind", RuntimeWarning)
    warnings.warn("twice")

run_command(Options, warn, [])
warnings.warn("after")
"""


def test_a_warning_is_one_line_said_once(tmp_path):
    (tmp_path / "warn.py").write_text(WARNING)
    root = Path(__file__).resolve().parents[3]
    told = {flag: subprocess.run([sys.executable, *flag, tmp_path / "warn.py"], capture_output=True, text=True, check=True,
                                 env={**os.environ, "PYTHONPATH": str(root)}).stderr for flag in ((), ("-W", "ignore"))}
    assert told["-W", "ignore"] == ""
    assert told[()].count("twice") == 1 and told[()].startswith("warning: twice\n")
    assert "RuntimeWarning: of a kind" in told[()] and "UserWarning: after" in told[()]  # with the place in the program, as ever


def test_both_spellings_of_a_flag_are_accepted():
    for flag in ("--learning-rate", "--learning_rate"):
        command = [sys.executable, "-m", "pgm.train", flag, "1", "--steps", "1", "--epochs", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and all(f"--{name}" in done.stderr for name in ("epochs", "steps", "minutes"))


def test_readme_s_way_to_several_processes(tmp_path):
    root = Path(__file__).resolve().parents[3]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pgm.train", "--"]
    data = ["--dataset", str(root / "docs" / "my_scm.py"), "--option", "size=64"]
    command = ["--run", str(tmp_path), *data, "--steps", "2", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pgm" / "mechanism.pt").exists()


def test_separator_may_arrive():
    done = subprocess.run([sys.executable, "-m", "pgm.train", "--", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout

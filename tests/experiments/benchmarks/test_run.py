"""The command ``experiments.benchmark``: which figures there are, and what it prints and writes."""

from __future__ import annotations

import pytest

from datasets.errors import UserError
from experiments import benchmark
from experiments.benchmarks.base import MEASUREMENTS, Measurement
from experiments.benchmarks.options import Options
from experiments.benchmarks.run import table
from mechanisms.runs.files import read_json


def test_the_measurements_of_every_file_are_found():
    assert {"truth_l1_do_thickness_60s", "ten_experts_against_one", "masktune_seconds", "help_seconds"} <= set(MEASUREMENTS)


def test_figures_stand_beside_their_targets(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MEASUREMENTS, "seed", Measurement(lambda bench: (float(bench.seed), "as given"), "s", None, 2.0))
    monkeypatch.setitem(MEASUREMENTS, "count", Measurement(lambda bench: (float(bench.count), ""), "images", 5.0, 9.0, higher=True))
    benchmark.main(Options("seed,count", tmp_path / "b.json", count=8, seed=1))
    rows = read_json(tmp_path / "b.json")
    assert rows["seed"] == {"value": 1.0, "unit": "s", "reference": None, "target": 2.0, "met": True, "note": "as given"}
    assert rows["count"]["met"] is False and "seed: as given" in (printed := capsys.readouterr().out) and "≤ 2" in printed
    assert table(rows).row_count == 2


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="--only speed: unknown 'speed'"):
        benchmark.main(Options("speed"))

"""Scores: what they hold, how they survive JSON and how they are summed up; every metric is documented."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from dscm.metrics import METRICS, Score, mean_and_error, summarise
from mechanisms.runs.files import RunError
from tests.errors import naming

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
SCORE = Score("composition_l1", 1.5, 0.1, 100, "grey levels", settings={"temperature": 0.1, "cycles": 10, "effect": "total"},
              floors={"identity": 0.0})


def test_a_score_survives_strict_json():
    for score in (SCORE, Score("truth_psnr", math.inf, None, 3, "dB", "higher", "do(age)", "age", floors={"truth": math.inf})):
        text = json.dumps(score.to_dict(), allow_nan=False)
        assert Score.from_dict(json.loads(text)) == score
    assert SCORE.title == "composition_l1 (temperature 0.1, cycles 10, effect total)"
    assert Score("truth_attribute", 1, None, 2, intervention="do(t)", variable="i").title == "truth_attribute of i under do(t)"


@pytest.mark.parametrize("change, message", [
    ({"value": "high"}, "value='high'"), ({"value": None}, "value=None"), ({"value": True}, "value=True"), ({"count": 1.5}, "count=1.5"),
    ({"floors": {"truth": "x"}}, "floors="), ({"settings": [1]}, "settings="), ({"extra": 1}, "'extra'"),
    ({"count": None}, "count=None"), ({"value": float("nan")}, "value=nan"), ({"unit": 3}, "unit=3"),
])
def test_a_damaged_score_is_refused_by_name(change, message):
    with pytest.raises(RunError, match=naming(f"run/metrics.json {message}")):
        Score.from_dict({**SCORE.to_dict(), **change}, "run/metrics.json")
    with pytest.raises(RunError, match=naming("metrics.json 'metric' dscm.evaluate")):
        Score.from_dict({key: value for key, value in SCORE.to_dict().items() if key != "metric"})
    with pytest.raises(RunError, match=naming("metrics.json 3")):
        Score.from_dict(3)


@pytest.mark.parametrize("change, message", [
    ({"value": math.nan}, "truth_l1 value"), ({"error": math.nan}, "truth_l1 error"),
    ({"floors": {"truth": math.nan}}, "truth_l1 truth"), ({"count": 0}, "count=0"),
    ({"floors": {"truth_l1 ground": 1.0}}, "ground identity truth real"), ({"better": "up"}, "better='up'"),
])
def test_what_is_no_figure_is_no_score(change, message):
    with pytest.raises(RunError, match=naming(message)):
        Score(**{**{"metric": "truth_l1", "value": 1.0, "error": None, "count": 2}, **change})


def test_summarise_takes_means_with_their_errors():
    floors = {"identity": torch.tensor([4.0, 6.0]), "truth": 0}
    score = summarise("truth_l1", torch.tensor([1.0, 3.0]), intervention="do(age)", floors=floors)
    assert score == Score("truth_l1", 2.0, 1.0, 2, "grey levels", "lower", "do(age)", floors={"identity": 5.0, "truth": 0.0})
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, 1.0)
    assert summarise("truth_l1", torch.tensor([1.0])).error is None
    coverage = summarise("coverage_attribute", 0.8, count=7, variable="age", unit="years", better="0.5", settings={"level": 0.5})
    assert (coverage.error, coverage.count, coverage.unit, coverage.better) == (None, 7, "years", "0.5")
    for given, message in (({"metric": "l1", "values": 1.0}, "'l1' truth_l1"),
                           ({"metric": "truth_l1", "values": 1.0}, "truth_l1 count"),
                           ({"metric": "minimality_misplaced", "values": torch.zeros(0)}, "minimality_misplaced"),
                           ({"metric": "truth_l1", "values": torch.tensor([1.0, math.nan])}, "truth_l1 NaN")):
        with pytest.raises(RunError, match=naming(message)):
            summarise(**given)


def test_every_metric_is_described_once_here_and_in_the_docs():
    text = DOCS.read_text(encoding="utf-8")
    for name, metric in METRICS.items():
        assert name == metric.name and metric.meaning and metric.trap and f"`{name}`" in text
        assert metric.better in ("lower", "higher") or 0 < float(metric.better) < 1

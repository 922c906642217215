"""What a run of classifiers leaves: rows of results and weights to load."""

from __future__ import annotations

import json
import math
import threading

import pytest
import torch

from datasets.registry import open_dataset
from datasets.task import task_of
from experiments.training.store import folder_of, list_trained, load_trained, record, results
from mechanisms.runs.files import RunError
from mechanisms.training.state import MetricsLog
from tests.errors import naming
from tests.experiments.toy import PLAIN


def test_rows_of_results_are_of_the_log(trained):
    rows = results(trained)
    assert len(rows) == 2 * len(PLAIN) and {row["rows"] for row in rows if row["algorithm"] != "dfr"} == {96}
    assert {row["rows"] for row in rows if row["algorithm"] == "dfr"} == {48} and all(0.5 <= row["majority"] < 0.65 for row in rows)
    row = next(row for row in rows if (row["algorithm"], row["seed"]) == ("irm", 1))
    log = {r["step"]: r["valid"] for r in MetricsLog.read(folder_of(trained, "irm", 1) / "metrics.jsonl")}
    assert row["steps"] == row["rules"]["last"]["step"] == 12 and sorted(log) == [4, 8, 12]
    for found in row["rules"].values():
        means = log[found["step"]]
        assert found["accuracy"] == means["accuracy"] and found["shifted"] == means["shift_0"]
        assert found["worst_group"] == min(means[f"group_{g}"] for g in range(4))
    assert row["rules"]["iid"]["accuracy"] == max(means["accuracy"] for means in log.values())
    assert row["rules"]["oracle"]["shifted"] == max(means["shift_0"] for means in log.values())


def test_logged_accuracies_are_those_of_the_classifier(trained, toy):
    dataset = open_dataset(toy)
    task, row = task_of(dataset), results(trained)[0]
    rows = task.split("valid").batch(slice(None))
    right = load_trained(trained, row["algorithm"], row["seed"]).predict(rows["image"]).argmax(1) == rows["label"]
    assert right.float().mean().item() == pytest.approx(row["rules"]["last"]["accuracy"], abs=1e-6)
    groups = [right[rows["group"] == g].float().mean().item() for g in range(4)]
    assert min(groups) == pytest.approx(row["rules"]["last"]["worst_group"], abs=1e-6)


def test_rows_of_two_commands_are_all_there(tmp_path):
    def write(k: int) -> None:
        for seed in range(20):
            record(tmp_path, {"algorithm": f"a{k}", "seed": seed, "steps": 1, "seconds": 1, "rows": 9, "majority": 0.5, "rules": {}})

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results(tmp_path)) == 80


def test_classifiers_that_are_not_there(trained, tmp_path):
    for arguments, message in [(("erm", 7), "erm seed 7 0 experiments.train"),
                               (("erm", 0, "best"), "'best' last iid worst-group oracle")]:
        with pytest.raises(RunError, match=naming(message)):
            load_trained(trained, *arguments)
    assert list_trained(tmp_path) == []
    with pytest.raises(RunError, match=naming("(1, 16, 16) (3, 16, 16)")):
        load_trained(trained, "erm", 0).predict(torch.rand(2, 3, 16, 16))


def test_results_are_json_lines_of_finite_numbers(trained):
    for line in (trained / "classifiers" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert all(math.isfinite(value) for found in row["rules"].values() for value in found.values()) and row["seconds"] > 0

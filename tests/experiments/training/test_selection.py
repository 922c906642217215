"""Selection: rows, halves, criteria and the worst group."""

from __future__ import annotations

import csv

import pytest
import torch

from datasets.base import Split
from datasets.registry import open_dataset
from datasets.task import task_of
from experiments.algorithms.dfr import halved
from experiments.metrics.groups import left_out, worst_group
from experiments.training.rows import Rows
from experiments.training.selection import criteria, selection_split, shifts_of
from experiments.training.store import results
from tests.experiments.toy import command, trainer


def test_selection_rows_weigh_as_they_say(toy):
    task = task_of(open_dataset(toy))
    split = selection_split(task, 40)
    columns, rows = split.attributes, split.attributes["row"][:40]
    assert 40 < len(task.split("valid")) and 40 <= int(rows.max()) and torch.equal(rows, rows.unique())  # not the first ones
    assert shifts_of(task) == ["unlinked"] and len(split) == 80 and columns["shift"].tolist() == [0] * 40 + [1] * 40
    for weight, which in (("observed", columns["shift"] == 0), ("in_shift", columns["shift"] == 1)):
        assert columns[weight].mean() == pytest.approx(1) and not columns[weight][~which].any()
    groups = columns["group"][:40]
    assert all((columns["in_group"] * (columns["group"] == g)).mean() == pytest.approx(1) for g in groups.unique())
    assert torch.equal(split.images[:40], task.split("valid").images[rows]) and torch.equal(columns["label"][:40], columns["label"][40:])
    assert not torch.equal(columns["group"][40:], groups)


def test_halves_share_no_image(toy):
    split = selection_split(task_of(open_dataset(toy)), 41)
    first, second = halved(split, torch.Generator().manual_seed(0))
    assert len(first) == 20 and len(second) == 42 and not set(first.attributes["row"].tolist()) & set(second.attributes["row"].tolist())
    assert first.attributes["observed"].mean() == second.attributes["in_shift"].mean() == pytest.approx(1)


def test_criteria_prefer_what_they_say(toy):
    task = task_of(open_dataset(toy))
    rows = Rows(task)
    rules = criteria(rows.selection(96), rows.sizes)
    base = {"loss": 0.5, "accuracy": 0.8, "shift_0": 0.6, **{f"group_{g}": 0.7 for g in range(4)}}
    groups = {f"group_{g}": 0.71 for g in range(4)}
    for rule, better in (("iid", {"accuracy": 0.81}), ("worst-group", groups), ("oracle", {"shift_0": 0.61})):
        assert rules[rule]({**base, **better}) < rules[rule](base)
        assert rules[rule]({**base, "loss": 0.4}) < rules[rule](base) == pytest.approx(rules[rule]({**base, "loss": 900.0}), abs=1e-6)
    largest = int(torch.bincount(rows.selection(96).attributes["group"]).argmax())
    assert worst_group({**base, f"group_{largest}": 0.1}, rows.selection(96)) == 0.1


def test_a_group_of_few_rows_is_not_the_worst():
    def split(*sizes):
        group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return Split("valid", torch.zeros(len(group), 1, 2, 2), {"group": group, "shift": torch.zeros_like(group)})

    means = {"group_0": 0.9, "group_1": 0.2, "group_2": 0.0}
    assert worst_group(means, split(10, 10, 9)) == 0.2
    assert worst_group(means, split(3, 2, 3)) == 0.0  # all are small: the largest count
    assert worst_group(means, split(3, 0, 2)) == 0.9


def test_groups_that_are_left_out_of_the_worst_are_counted(toy, tmp_path, capsys):
    command(toy, tmp_path, "--algorithm", "erm", "--seeds", "1", "--steps", "2")
    groups = trainer(toy, tmp_path, "erm").valid
    counts = torch.bincount(groups.attributes["group"][groups.attributes["shift"] == 0], minlength=4)
    small = counts[counts < 10]
    assert 0 < len(small) < 4
    row, out = results(tmp_path)[0], capsys.readouterr().out
    assert (row["groups"], row["groups_left_out"], row["rows_left_out"]) == (4, len(small), int(small.sum()))
    assert f"erm: {len(small)} of 4 groups, with {int(small.sum())} of 96 images" in out and "below 10 images" in out
    line = next(csv.DictReader((tmp_path / "classifiers" / "results.tsv").open(), delimiter="\t"))
    assert (line["groups"], line["groups_left_out"], line["rows_left_out"]) == ("4", str(len(small)), str(int(small.sum())))


def test_groups_without_rows_are_left_out_too():
    label, shift = torch.tensor([0] * 20 + [1] * 3), torch.zeros(23, dtype=torch.long)
    split = Split("valid", torch.zeros(23, 1, 2, 2, dtype=torch.uint8), {"group": 2 * label, "shift": shift})
    assert left_out(split, 4) == (3, 3) and worst_group({"group_0": 0.9, "group_2": 0.0}, split) == 0.9
    alone = Split("valid", torch.zeros(3, 1, 2, 2, dtype=torch.uint8), {"group": torch.tensor([1, 1, 0]), "shift": shift[:3]})
    assert left_out(alone, 2) == (1, 1)

"""Rows to train on: groups and environments that are there or not."""

from __future__ import annotations

import pytest
import torch

from datasets.base import Split, fingerprint
from datasets.registry import open_dataset
from datasets.schema import SchemaError
from experiments.training.options import Options
from experiments.training.run import rows_for, train_classifiers
from mechanisms.training.config import RunOptions
from tests.errors import naming, says
from tests.experiments.toy import FLAGS, TOY, command


def test_groups_are_needed_where_they_are(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(TOY.replace('spurious = ("light",)', "spurious = ()"))
    with pytest.raises(SchemaError, match=naming("--algorithm groupdro Toy --spurious NAME")):
        train_classifiers(rows_for(open_dataset(str(path))), ["groupdro"], [0], FLAGS, (), RunOptions(tmp_path / "run"), Options().data)


def test_an_empty_environment_is_named(tmp_path):
    path = tmp_path / "gap.py"
    path.write_text(TOY.replace("torch.arange(self.size) % 2 if", "torch.arange(self.size) % 2 * 2 if"))
    with pytest.raises(SchemaError, match=naming("1 Toy")):
        train_classifiers(rows_for(open_dataset(str(path))), ["vrex"], [0], FLAGS, (), RunOptions(tmp_path / "run"), Options().data)


def test_images_that_are_read_one_by_one_are_told_apart():
    class Lazy(list):
        pass

    def split(value: int) -> Split:
        return Split("train", Lazy(torch.full((1, 2, 2), value, dtype=torch.uint8) for _ in range(3)), {"x": torch.zeros(3)})

    index = torch.arange(3)
    assert fingerprint(split(1), index, lazy=True) == fingerprint(split(1), index, lazy=True) != fingerprint(split(2), index, lazy=True)
    assert fingerprint(split(1), index) == fingerprint(split(2), index)


def test_empty_groups_are_named_once(tmp_path, capsys):
    path = tmp_path / "gap.py"
    path.write_text(TOY.replace("torch.where(u[:, 1] < 0.85, shape, 1 - shape)", "torch.where(u[:, 1] < 0.85, shape, 1)"))
    command(str(path), tmp_path / "run", "--algorithm", "groupdro,lisa,reweighting,erm", "--seeds", "1")
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1 and says(told, "train Toy shape=square light=no")

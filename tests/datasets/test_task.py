"""A classification task on a data set: columns, environments, groups, and what is said about tasks that make no sense."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import CausalDataset, SchemaError, Variable, open_dataset
from datasets.task import COLUMNS, task_of
from tests.errors import naming

ROWS = 8


def data(**raw: object) -> CausalDataset:
    """Two classes, a discrete and a continuous spurious attribute; ``raw`` replaces attributes."""

    class Given(CausalDataset):
        name = "given"
        variables = (Variable("y", "binary", classes=("no", "yes")), Variable("k", "categorical", ("y",), classes=("a", "b", "c")),
                     Variable("x", "real", ("y",)), Variable("place", "categorical", classes=3),
                     Variable("image", "image", ("k", "x", "y"), shape=(1, 2, 2)))
        label, spurious = "y", ("k", "x")

        def load(self, split):
            return {"y": torch.arange(ROWS) % 2, "k": torch.arange(ROWS) % 3, "x": torch.arange(float(ROWS)),
                    "place": torch.arange(ROWS) // 4, "image": torch.zeros(ROWS, 2, 2), **raw}

    return Given()


def test_columns_of_a_split():
    task = task_of(data())
    rows = task.split("train")
    assert tuple(rows.attributes) == COLUMNS and all(v.dtype == torch.int64 and v.shape == (ROWS,) for v in rows.attributes.values())
    assert torch.equal(rows.attributes["row"], torch.arange(ROWS)) and torch.equal(rows.attributes["label"], torch.arange(ROWS) % 2)
    assert set(rows.batch([1, 3])) == {*COLUMNS, "image"} and task.classes == 2


def test_groups_are_all_combinations_and_numbered_by_their_names():
    task = task_of(data())
    assert len(task.group_names) == 2 * 3 * 2 and task.group_names[0] == "y=no, k=a, x=≤ 3" and task.group_names[-1] == "y=yes, k=c, x=> 3"
    attributes = task.dataset.split("train").attributes
    for row, group in enumerate(task.groups(attributes).tolist()):
        words = f"y={('no', 'yes')[row % 2]}, k={'abc'[row % 3]}, x={'> 3' if row > 3 else '≤ 3'}"
        assert task.group_names[group] == words


def test_groups_without_spurious_attributes_are_the_classes():
    task = task_of(data(), spurious=())
    assert task.group_names == ("y=no", "y=yes")
    assert torch.equal(task.split("test").attributes["group"], task.split("test").attributes["label"])
    with pytest.raises(SchemaError, match=naming("GroupDRO given --spurious NAME")):
        task.check_groups("GroupDRO")


def test_environments_of_an_attribute():
    task = task_of(data(), environment="place")
    assert task.environment_count == 2 and task.split("valid").attributes["environment"].tolist() == [0] * 4 + [1] * 4
    task.check_environments("IRM")
    gap = task_of(data(place=torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])), environment="place")
    with pytest.raises(SchemaError, match=naming("IRM 1 given 0..E-1")):
        gap.check_environments("IRM")


def test_one_environment():
    task = task_of(data())
    assert task.environment_count == 1 and not task.split("train").attributes["environment"].any()
    with pytest.raises(SchemaError, match=naming("IRM given --environment NAME")):
        task.check_environments("IRM")


def test_environments_that_a_data_set_defines():
    task = task_of(open_dataset("coloredmnist", {"train_digits": 20, "valid_digits": 20, "test_digits": 20}))
    assert task.environment_count == 2 and sorted(task.split("train").attributes["environment"].tolist()) == [0] * 10 + [1] * 10
    task.check_environments("IRM")


@pytest.mark.parametrize("as_given", [
    lambda e: pd.Series(e.numpy(), index=range(100, 100 + 3 * ROWS, 3)), lambda e: e.numpy().astype(np.uint16), lambda e: e.tolist(),
    lambda e: e.numpy().astype(">i8"), lambda e: e.to(torch.uint32), lambda e: pd.array(e.tolist(), dtype="Int64")], ids=range(6))
def test_columns_beside_the_attributes_are_taken_by_position(as_given):
    dataset, numbers, masks = data(), torch.arange(ROWS) % 3, torch.eye(2).bool().expand(ROWS, 2, 2).clone()
    masks[3] = True
    dataset.environments = dataset.subjects = lambda split: as_given(numbers)
    dataset.masks = lambda split: pd.Series(list(masks.numpy()), index=range(7, 7 + ROWS))
    task = task_of(dataset)
    assert torch.equal(task.environments("train"), numbers) and torch.equal(dataset.distinct_subjects("train"), numbers)
    assert all((torch.as_tensor(mask) == masks[row]).all() for row, mask in enumerate(task.masks("train")))


def test_images_of_a_table_are_taken_by_position():
    pictures = np.arange(ROWS * 4, dtype=np.uint8).reshape(ROWS, 1, 2, 2)
    for images in (pd.Series(list(pictures), index=range(5, 5 + ROWS)), pictures.astype(">i4"), pictures[::-1][::-1]):
        assert (data(image=images).split("train").batch(range(ROWS))["image"] * 255).round().long().tolist() == pictures.tolist()


def test_subjects_may_be_words_and_are_one_a_row():
    dataset = data()
    for words in (["P2", "P1"] * 4, pd.Series(["P2", "P1"] * 4, index=range(9, 9 + ROWS)), np.array(["P2", "P1"] * 4)):
        dataset.subjects = lambda split, words=words: words
        assert dataset.distinct_subjects("train").tolist() == [1, 0] * 4
    for wrong, told in (([1, 2], "2 8"), ([0.5] * 8, "float64"), (["P1", None] * 4, "'P1' 0")):
        dataset.subjects = lambda split, wrong=wrong: wrong
        with pytest.raises(SchemaError, match=naming("subjects('train') given", told)):
            dataset.distinct_subjects("train")


@pytest.mark.parametrize(("environments", "told"), [
    (torch.zeros(3, dtype=torch.long), "environments('train') (3,) 8"),
    (torch.zeros(8, 1, dtype=torch.long), "(8, 1)"), (torch.zeros(8), "torch.float32"),
    (torch.zeros(8, dtype=torch.bool), "torch.bool"), (torch.arange(8) - 1, "torch.int64 -1 0..E-1"),
])
def test_environments_that_make_no_sense(environments, told):
    dataset = data()
    type(dataset).environments = lambda self, split: environments
    with pytest.raises(SchemaError, match=naming(told)):
        task_of(dataset).environments("train")


def test_environments_may_be_a_list():
    dataset = data()
    type(dataset).environments = lambda self, split: [0, 1] * 4
    assert task_of(dataset).environment_count == 2


@pytest.mark.parametrize(("returned", "told"), [
    ({"k": torch.zeros(3, dtype=torch.long)}, "'dark' 3 k 8"),
    ({"k": torch.tensor(1)}, "'dark' 1 k 8"), ({"w": torch.zeros(8)}, "'dark' given w"),
    ({"image": torch.zeros(8)}, "'dark' given image y place k x"), ({}, "'dark' given y place k x"),
    (torch.zeros(8), "Tensor"), ({"k": torch.full((8,), 7)}, "k=7"), ({"x": torch.full((8,), torch.nan)}, "x=nan"),
])
def test_shifts_that_make_no_sense(returned, told):
    dataset = data()
    type(dataset).shifts = lambda self: {"dark": lambda attributes, generator: returned}
    task = task_of(dataset)
    attributes, generator = dataset.split("test").attributes, torch.Generator()
    with pytest.raises(SchemaError, match=naming(told)):
        task.shifted("dark", attributes, generator)
    with pytest.raises(SchemaError, match=naming("'light' given dark")):
        task.shifted("light", attributes, generator)


def test_shifts_are_given_rows_and_checked():
    dataset = data()
    type(dataset).shifts = lambda self: {"dark": lambda attributes, generator: {"k": 2.0 * attributes["y"], "x": [1] * 3}}
    do = task_of(dataset).shifted("dark", {"y": torch.tensor([0, 1, 1])}, torch.Generator())
    assert do["k"].tolist() == [0, 2, 2] and do["k"].dtype == torch.int64 and do["x"].dtype == torch.float32


def test_other_tasks_on_the_same_data():
    task = task_of(data(), label="k", spurious=("y",))
    assert task.classes == 3 and [v.name for v in task.spurious] == ["y"] and len(task.group_names) == 6


@pytest.mark.parametrize(("given", "words"), [
    ({"label": "z"}, "'z' given"), ({"label": "x"}, "'x' y place k"),
    ({"spurious": ("w",)}, "'w' given"), ({"spurious": ("y",)}, "'y'"),
    ({"environment": "w"}, "environment 'w'"), ({"environment": "x"}, "environment 'x'"),
])
def test_senseless_tasks(given, words):
    with pytest.raises(SchemaError, match=naming(words)):
        task_of(data(), **given)


def test_data_that_cannot_be_classified():
    with pytest.raises(SchemaError, match=naming("given 'y'")):
        task_of(data(y=torch.zeros(ROWS, dtype=torch.long)))
    with pytest.raises(SchemaError, match=naming("morphomnist --label digit")):
        task_of(open_dataset("morphomnist"))


@pytest.mark.parametrize("name, other", [("coloredmnist", "colourmnist"), ("colourmnist", "coloredmnist")])
def test_names_that_are_easily_confused_are_told_apart(name, other):
    dataset = open_dataset(name, {"train_digits": 60, "valid_digits": 20, "test_digits": 20})
    for wrong in (lambda: open_dataset(name, {"sizes": "3"}), lambda: open_dataset(name, {"train_digits": "x"}),
                  lambda: task_of(dataset, "hue"),
                  lambda: task_of(dataset).shifted("e=0.8", dataset.split("test").attributes, torch.Generator()),
                  lambda: dataset.intervened("test", torch.arange(2), {"digit": 3})):
        with pytest.raises(SchemaError, match=rf"{name}'? \(not {other}\)"):
            wrong()

"""Waterbirds in the published format: the table, the groups, where masks may be."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from PIL import Image

import datasets.photographs.waterbirds
from datasets import open_dataset
from datasets.files.idx import DataError
from datasets.task import task_of
from tests.errors import naming
from tests.trees import waterbirds


@pytest.fixture
def tree(tmp_path):
    return waterbirds(tmp_path / "waterbird_complete95_forest2water2")


@pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
def test_columns_are_read(tree):
    dataset = open_dataset("waterbirds", {"data_dir": tree.parent, "size": 32})  # the archive's folder below is found
    test = dataset.split("test").attributes
    assert torch.equal(test["y"], torch.arange(24, 36) % 2) and torch.equal(test["place"], torch.arange(24, 36) // 2 % 2)
    assert task_of(dataset).group_names == ("y=landbird, place=land", "y=landbird, place=water", "y=waterbird, place=land",
                                            "y=waterbird, place=water")


def test_other_group_sizes_than_published_are_warned_of(tree, monkeypatch):
    with pytest.warns(UserWarning, match=naming("3 3498 184 56")):
        open_dataset("waterbirds", {"data_dir": tree}).split("train")
    monkeypatch.setattr(datasets.photographs.waterbirds, "PUBLISHED", {(0, 0): 3, (0, 1): 3, (1, 0): 3, (1, 1): 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset("waterbirds", {"data_dir": tree}).split("train")


@pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_columns_that_are_not_read_are_not_needed_and_marks_are_no_part_of_a_name(tree, encoding):
    rows = open_dataset("waterbirds", {"data_dir": tree}).rows("test")
    lines = [line.split(",") for line in (tree / "metadata.csv").read_text(encoding="utf-8").splitlines()]
    (tree / "metadata.csv").write_text("\r\n".join(",".join(line[1:5]) for line in lines), encoding=encoding)
    assert open_dataset("waterbirds", {"data_dir": tree}).rows("test") == rows
    (tree / "metadata.csv").write_text("img_filename,y,split,place\nZürich.jpg,0,0,0\n", encoding="latin-1")
    with pytest.raises(DataError, match=naming("metadata.csv 2 UTF-8 29 0xfc")):
        open_dataset("waterbirds", {"data_dir": tree}).rows("test")


@pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
def test_masks_lie_on_what_viewers_show(tree):
    """A photograph that was turned, and says so, is shown as before; of one that lies, the mask is of another size."""
    row, exif = open_dataset("waterbirds", {"data_dir": tree}).rows("train")[1], Image.Exif()
    exif[0x0112] = 3
    Image.open(row.image).transpose(Image.Transpose.ROTATE_180).save(row.image, exif=exif, quality=95)
    dataset = open_dataset("waterbirds", {"data_dir": tree, "size": 32})
    image, mask = torch.tensor(dataset.split("train").images[1]).float().mean(0), dataset.masks("train")[1]
    assert image[mask].mean() - image[~mask].mean() > 60
    exif[0x0112] = 6
    Image.open(row.image).save(row.image, exif=exif)
    with pytest.raises(DataError, match=naming(f"{row.image} 30×40 40×30")):
        open_dataset("waterbirds", {"data_dir": tree, "size": 32}).masks("train")[1]


@pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
def test_masks_of_everything_are_warned_of(tree):
    for path in sorted((tree / "segmentations").rglob("*.png"))[1:]:
        Image.new("L", (40, 30), 255).save(path)
    task = task_of(open_dataset("waterbirds", {"data_dir": tree, "size": 32}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.masks("train")  # the first is not of everything
    with pytest.warns(UserWarning, match=naming("masks('test') waterbirds")):
        task.masks("test")


@pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
@pytest.mark.parametrize("where", ["..", "."])
def test_masks_beside_the_table_or_the_folder(tree, where):
    if where == "..":
        shutil.move(tree / "segmentations", tree.parent / "segmentations")
    for data_dir in (tree, tree.parent):
        assert open_dataset("waterbirds", {"data_dir": data_dir, "size": 32}).masks("train")[3].any()
    shutil.rmtree(tree.parent / "segmentations" if where == ".." else tree / "segmentations")
    assert open_dataset("waterbirds", {"data_dir": tree, "size": 32}).masks("train") is None


@pytest.mark.parametrize(("old", "new", "words"), [
    ("img_id,img_filename", "img_id,file", "img_filename img_id file y"),
    ("Some_Bird_0000.jpg,0,", "Some_Bird_0000.jpg,2,", "metadata.csv 2 y='2' 0 1"),
    ("Some_Bird_0035.jpg,1,2", "Some_Bird_0035.jpg,1,3", "metadata.csv 37 split='3' 0 1 2"),
    ("Some_Bird_0003.jpg", "Some_Bird_0000.jpg", "5 img_filename='001.Some_Bird/Some_Bird_0000.jpg' 2"),
    ("Some_Bird_0003.jpg", "Other_Bird.jpg", "1 12 Other_Bird.jpg metadata.csv 5"),
    ("001.Some_Bird/Some_Bird_0003.jpg", "", "metadata.csv 5 img_filename"),
    *[("001.Some_Bird/Some_Bird_0003.jpg", name, f"5 img_filename='{name}' 2") for name in (
        "./001.Some_Bird/Some_Bird_0000.jpg", "001.Some_Bird//Some_Bird_0000.jpg", "001.Some_Bird/../001.Some_Bird/./Some_Bird_0000.jpg")],
    ("003.Some_Bird/Some_Bird_0035.jpg", "./001.Some_Bird/Some_Bird_0000.jpg", "37 img_filename= 2"),
    ("Some_Bird_0003.jpg,1", "Some_Bird,0003.jpg,1", "metadata.csv 5 7"), ("Some_Bird_0003.jpg,1,0", "Some_Bird_0003.jpg,1",
                                                                                         "metadata.csv 5"),
])
@pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
def test_wrong_tables(tree, old, new, words):
    table = tree / "metadata.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=naming(words)):
        open_dataset("waterbirds", {"data_dir": tree}).split("train")

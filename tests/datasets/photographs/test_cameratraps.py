"""Caltech Camera Traps in the published format: categories, cameras, boxes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from datasets import open_dataset
from datasets.files.idx import DataError
from datasets.task import task_of
from tests.errors import naming, says
from tests.trees import HIGH, WIDE, cameratraps, change_json, photograph


@pytest.fixture
def tree(tmp_path):
    return cameratraps(tmp_path)


def opened(tree, **options):
    return open_dataset("cameratraps", {"data_dir": tree, "size": 40, **options})


def test_rows_are_images_with_animals(tree):
    dataset = opened(tree)
    assert dataset.schema["category"].classes == ("opossum", "raccoon") and dataset.schema["location"].classes == ("7", "38", "100")
    train = dataset.split("train").attributes
    assert train["category"].tolist() == [0, 0, 1, 1] and train["location"].tolist() == [1, 2, 1, 2]


def test_each_camera_of_training_is_an_environment_and_trans_cameras_are_others(tree):
    dataset = opened(tree)
    task_of(dataset).check_environments("IRM")
    assert dataset.environments("train").tolist() == [0, 1, 0, 1] and dataset.environments("test").tolist() == [2] * 4
    assert opened(tree, test="cis_test").environments("test").tolist() == [0, 1, 0, 1]


def test_mask_is_the_union_of_boxes_scaled_to_the_image(tree):
    masks, size = opened(tree).masks("train"), 40
    expected = torch.zeros(size, size, dtype=torch.bool)
    for left, top, width, height in ((20, 10, 40, 30), (0, 50, 10, 10)):  # of an image that is annotated at twice its size
        x, y = size / (2 * WIDE), size / (2 * HIGH)
        expected[int(top * y):-int(-(top + height) * y // 1), int(left * x):int((left + width) * x)] = True
    assert torch.equal(masks[0], expected) and int(masks[1].sum()) < int(expected.sum())


def test_an_image_of_two_categories_is_two_rows(tree):
    change_json(tree / "eccv_18_annotation_files" / "train_annotations.json", lambda table: table["annotations"].append(
        {"id": "more", "image_id": "train-0", "category_id": 3, "bbox": [60, 40, 10, 10]}))
    dataset = opened(tree)
    rows = [row for row in dataset.rows("train") if row.image.name == "train-0.jpg"]
    assert [row.values["category"] for row in rows] == [0, 1] and dataset.masks("train")[4].sum() < dataset.masks("train")[0].sum()


def names(dataset, split):
    return [tuple(dataset.schema[name].classes[row.values[name]] for name in ("category", "location")) for row in dataset.rows(split)]


def test_categories_are_known_by_their_names_in_each_file(tree):
    """Whatever their numbers: those of two files may be swapped, or others altogether, that of empty too."""
    def renumber(numbers):
        def change(table):
            table["categories"] = [{"id": numbers[c["id"]], "name": c["name"]} for c in reversed(table["categories"])]
            for entry in table["annotations"]:
                entry["category_id"] = numbers[entry["category_id"]]
        return change

    before = {split: names(opened(tree), split) for split in ("train", "valid", "test")}
    for name, numbers in (("trans_test", {1: 3, 3: 1, 30: 30}), ("cis_val", {1: 30, 3: 7, 30: 1}), ("train", {1: 5, 3: 6, 30: 0})):
        change_json(tree / "eccv_18_annotation_files" / f"{name}_annotations.json", renumber(numbers))
    assert {split: names(opened(tree), split) for split in before} == before
    path = tree / "eccv_18_annotation_files" / "trans_test_annotations.json"
    change_json(path, lambda table: table["categories"][0].update(name="Empty "))
    assert names(opened(tree), "test") == before["test"]
    change_json(path, lambda table: table["categories"][1].update(name="lynx"))
    with pytest.raises(DataError, match=naming(f"{path} 'trans_test-2' 1 lynx opossum raccoon")):
        opened(tree).rows("test")


@pytest.mark.parametrize("location", [38, 38.0, "38", " 38", "38.0"])
def test_a_camera_has_one_name(tree, location):
    change_json(tree / "eccv_18_annotation_files" / "train_annotations.json", lambda table: table["images"][0].update(location=location))
    assert opened(tree).schema["location"].classes == ("7", "38", "100") and names(opened(tree), "train")[0][1] == "38"


def test_images_of_other_proportions_than_annotated(tree):
    """Cut, or turned by their EXIF orientation: boxes do not fit what is shown. Smaller ones of the same proportions do."""
    row = opened(tree).rows("train")[0]
    photograph(row.image, 0, size=(1024, 767))  # rounded from 768
    assert opened(tree).masks("train")[0].any()
    upside, side = Image.Exif(), Image.Exif()
    upside[0x0112], side[0x0112] = 3, 6
    Image.open(row.image).transpose(Image.Transpose.ROTATE_180).save(row.image, exif=upside)
    assert opened(tree).masks("train")[0].any()
    for save in (lambda: photograph(row.image, 0, size=(WIDE, WIDE)), lambda: Image.new("RGB", (WIDE, HIGH)).save(row.image, exif=side)):
        save()
        with pytest.raises(DataError, match=naming("train_annotations.json 'train-0' 80×60", row.image) + ".*(40×40|30×40)"):
            opened(tree).masks("train")[0]
        with pytest.warns(UserWarning, match=naming("1 4 train cameratraps")):
            assert opened(tree, skip_broken="true", masked_only="true").split("train").images.shape == (3, 40, 40)


def annotation(**changes):
    return lambda table: table["annotations"][2].update(changes)


def picture(**changes):
    return lambda table: table["images"][3].update(changes)


@pytest.mark.parametrize(("change", "words"), [
    (annotation(bbox=[90, 10, 5, 5]), "'train-1' bbox [90, 10, 5, 5]  80×60"),
    (annotation(bbox=[0, -9, 5, 5]), "bbox [0, -9, 5, 5]"), (annotation(bbox=[0, 0, 0, 5]), "bbox [0, 0, 0, 5]"),
    (annotation(bbox=[1, 2, 3]), "bbox [1, 2, 3]"),
    (annotation(category_id=8), "'train-1' 8 1 opossum 3 raccoon"),
    (annotation(image_id="x"), "'x'"),
    (lambda table: table.pop("annotations"), "'annotations' images categories"),
    (lambda table: table["images"][3].pop("location"), "3 'location'"),
    (lambda table: table["categories"].pop(1), "30"),
    *[(picture(**{side: value}), f"train_annotations.json 'train-3' {side}={value!r}")
      for side in ("width", "height") for value in (None, 0, -3, "80", True, [80], float("nan"), float("inf"))],
    *[(picture(location=value), f"'train-3' location={value!r}")
      for value in (None, "", " ", True, [38], {}, float("nan"))],
    *[(picture(file_name=value), "'train-3' file_name=")
      for value in (None, "", 5, "train-1.jpg", "./train-1.jpg", "a/../train-1.jpg")],
    *[(picture(file_name=f"./{other}.jpg"), f"'{other}' file_name='{other}.jpg' 'train-3'")
      for other in ("trans_test-1", "cis_val-0")],
    (picture(id="train-1"), "3 'train-1'"), (picture(id=[3]), "3 [3]"),
    (picture(id=None), "3 None"), (annotation(image_id=[1]), "[1]"),
    (annotation(category_id="3"), "'train-1' '3'"), (annotation(category_id=[3]), "[3]"),
    (annotation(category_id=True), "'train-1' True"), (annotation(bbox=[0.2, 0.1, 0.5, 0.5]), "'train-1' bbox 80×60"),
    (annotation(bbox=[0, 0, 1, 1]), "bbox [0, 0, 1, 1]"), (annotation(bbox="all"), "bbox all"),
    (annotation(bbox=[1, 2, True, 3]), "bbox [1, 2, True, 3]"),
    (annotation(bbox=[1, 2, float("inf"), 3]), "bbox [1, 2, inf, 3]"),
    (lambda table: table["categories"][1].update(id=1), "1 'raccoon'"),
    (lambda table: table["categories"][1].update(name="opossum"), "1 3 'opossum'"),
    (lambda table: table["categories"][1].update(name=None), "1 3 None"),
    (lambda table: table["categories"][1].update(id="3"), "1 '3' 'raccoon'"),
])
def test_wrong_tables(tree, change, words):
    change_json(tree / "eccv_18_annotation_files" / "train_annotations.json", change)
    with pytest.raises(DataError, match=naming(words)):
        opened(tree).split("train")


def test_unusable_boxes_are_left_out_and_counted(tree):
    path = tree / "eccv_18_annotation_files" / "train_annotations.json"
    change_json(path, lambda table: table["annotations"][1].update(bbox=[90, 10, 5, 5]))  # one of two of the first image
    change_json(path, annotation(bbox=[0, 0, 0, 5]))  # the second's own
    with pytest.warns(UserWarning) as told:
        dataset = opened(tree, skip_broken="true", masked_only="true")
        assert [row.image.name for row in dataset.rows("train")] == ["train-0.jpg", "train-2.jpg", "train-3.jpg"]
    assert any(says(str(w.message), "2 train cameratraps") for w in told)
    assert torch.equal(dataset.masks("train")[0], dataset.masks("train")[1])  # the first's other box, as all have it
    with pytest.warns(UserWarning, match=naming("train cameratraps")):
        dataset = opened(tree, skip_broken="true")
        assert len(dataset.split("train")) == 4
    with pytest.warns(UserWarning, match=naming("1 4 train cameratraps")):
        assert dataset.masks("train") is None


def test_wrong_files_and_options(tree):
    path = tree / "eccv_18_annotation_files" / "cis_val_annotations.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=naming("cis_val_annotations.json")):
        opened(tree)
    path.unlink()
    with pytest.raises(DataError, match=naming("eccv_18_annotation_files/cis_val_annotations.json cis_val_annotations.json")):
        opened(tree)
    with pytest.raises(DataError, match=naming("test='val' trans_test cis_test")):
        opened(cameratraps(tree), test="val")

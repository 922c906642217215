"""Caltech Camera Traps in the published format: categories, cameras, boxes."""

from __future__ import annotations

import pytest
import torch

from datasets import open_dataset
from datasets.files.idx import DataError
from datasets.task import task_of
from tests.trees import HIGH, WIDE, cameratraps, change_json


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


def annotation(**changes):
    return lambda table: table["annotations"][2].update(changes)


@pytest.mark.parametrize(("change", "words"), [
    (annotation(bbox=[90, 10, 5, 5]), r"image 'train-1': bbox \[90, 10, 5, 5\] .* lies outside the image, which is 80×60"),
    (annotation(bbox=[0, -9, 5, 5]), r"bbox \[0, -9, 5, 5\] .* lies outside"), (annotation(bbox=[0, 0, 0, 5]), "positive width and height"),
    (annotation(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\] is not left, top, width, height"),
    (annotation(category_id=8), "image 'train-1' has the unknown category 8; valid are 1 .opossum., 3 .raccoon."),
    (annotation(image_id="x"), "an annotation is about image 'x', which is not among its images"),
    (lambda table: table.pop("annotations"), "has no list 'annotations'; it should hold images, annotations, categories"),
    (lambda table: table["images"][3].pop("location"), "entry 3 of images has no 'location'"),
    (lambda table: table["categories"].pop(1), "fewer than two categories besides 30"),
])
def test_wrong_tables(tree, change, words):
    change_json(tree / "eccv_18_annotation_files" / "train_annotations.json", change)
    with pytest.raises(DataError, match=words):
        opened(tree).split("train")


def test_unusable_boxes_are_left_out_and_counted(tree):
    path = tree / "eccv_18_annotation_files" / "train_annotations.json"
    change_json(path, lambda table: table["annotations"][1].update(bbox=[90, 10, 5, 5]))  # one of two of the first image
    change_json(path, annotation(bbox=[0, 0, 0, 5]))  # the second's own
    with pytest.warns(UserWarning) as told:
        dataset = opened(tree, skip_broken="true", masked_only="true")
        assert [row.image.name for row in dataset.rows("train")] == ["train-0.jpg", "train-2.jpg", "train-3.jpg"]
    assert any("2 boxes of the train split of cameratraps cannot be used and are left out, first: " in str(w.message) for w in told)
    assert torch.equal(dataset.masks("train")[0], dataset.masks("train")[1])  # the first's other box, as all have it
    with pytest.warns(UserWarning, match="cannot be used"):
        dataset = opened(tree, skip_broken="true")
        assert len(dataset.split("train")) == 4
    with pytest.warns(UserWarning, match="1 of 4 train images of cameratraps have no mask"):
        assert dataset.masks("train") is None


def test_wrong_files_and_options(tree):
    path = tree / "eccv_18_annotation_files" / "cis_val_annotations.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cis_val_annotations.json is no json file: .*; fetch it again"):
        opened(tree)
    path.unlink()
    with pytest.raises(DataError, match="no eccv_18_annotation_files/cis_val_annotations.json or cis_val_annotations.json or .* in"):
        opened(tree)
    with pytest.raises(DataError, match="test='val' must be trans_test or cis_test"):
        opened(cameratraps(tree), test="val")

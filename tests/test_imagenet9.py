"""ImageNet-9 in the published format: classes, variants, and masks of either form."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from trees import foreground, imagenet9

from datasets import SchemaError, open_dataset
from datasets.imagenet9 import VARIANTS
from datasets.mnist import DataError
from datasets.task import task_of


@pytest.fixture
def tree(tmp_path):
    return imagenet9(tmp_path)


def test_classes_and_variants(tree):
    dataset = open_dataset("imagenet9", {"data_dir": tree, "size": 32, "variant": "mixed_same, mixed_rand"})
    test = dataset.split("test").attributes
    assert torch.equal(test["category"], torch.arange(9).repeat(2)) and dataset.schema["category"].classes[6] == "musical instrument"
    assert test["variant"].tolist() == [VARIANTS.index("mixed_same")] * 9 + [VARIANTS.index("mixed_rand")] * 9
    assert (dataset.split("train").attributes["variant"] == 0).all() and dataset.environments("test").tolist() == [0] * 9 + [1] * 9
    crossed = task_of(dataset, spurious=("variant",))
    assert len(crossed.group_names) == 54 and crossed.group_names[1] == "category=dog, variant=mixed_same"


def test_training_on_several_variants_has_an_environment_for_each(tree):
    dataset = open_dataset("imagenet9", {"data_dir": tree / "bg_challenge", "size": 32, "train_variant": "original,mixed_rand"})
    task = task_of(dataset)
    task.check_environments("IRM")
    assert task.environment_count == 2 and len(dataset.split("train")) == 18


def test_masks_are_arrays_or_what_was_taken_out(tree):
    dataset = open_dataset("imagenet9", {"data_dir": tree, "size": 32})
    for split in ("train", "valid", "test"):
        row = dataset.rows(split)[4]
        assert row.mask.suffix == (".npy" if split == "test" else ".JPEG")
        assert np.array_equal(dataset.mask(row), foreground())
    assert open_dataset("imagenet9", {"data_dir": tree, "size": 32, "train_variant": "mixed_rand"}).masks("train") is None


def test_arrays_of_other_rank_and_images_of_other_size(tree):
    dataset = open_dataset("imagenet9", {"data_dir": tree, "size": 32})
    np.save(dataset.rows("test")[0].mask, np.ones((30, 40, 3)))
    with pytest.raises(DataError, match=r"holds an array of shape \(30, 40, 3\); a mask is \(height, width\)"):
        dataset.masks("test")[0]
    Image.new("RGB", (7, 9)).save(dataset.rows("train")[0].mask)
    with pytest.raises(DataError, match=r"is \(9, 7\) pixels, but .*, from which it was made, is \(30, 40\)"):
        dataset.masks("train")[0]


@pytest.mark.parametrize(("options", "words"), [
    ({"variant": "mixed"}, "variant: unknown variant 'mixed'; valid are original, mixed_same"), ({"variant": ","}, "unknown variant ''"),
    ({"train_variant": "original,blurred"}, "train_variant: unknown variant 'blurred'"),
    ({"variant": "mixed_next"}, "no test/mixed_next/val or bg_challenge/test/mixed_next/val in .*, which holds bg_challenge; it should"),
])
def test_unknown_and_missing_variants(tree, options, words):
    with pytest.raises(SchemaError, match=words):
        open_dataset("imagenet9", {"data_dir": tree, **options}).split("test")


def test_unknown_and_missing_class_folders(tree):
    place = tree / "bg_challenge" / "train" / "original" / "train"
    (place / "09_tree").mkdir()
    with pytest.raises(DataError, match="unknown class folder .*09_tree; valid are 00_dog, 01_bird, 02_wheeled vehicle"):
        open_dataset("imagenet9", {"data_dir": tree}).split("train")
    (place / "09_tree").rmdir()
    shutil.rmtree(place / "03_reptile")
    with pytest.raises(DataError, match=f"no class folder 03_reptile in {place}"):
        open_dataset("imagenet9", {"data_dir": tree}).split("train")

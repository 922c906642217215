"""ImageNet-9 in the published format: classes, variants, and masks of either form."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import SchemaError, open_dataset
from datasets.files.idx import DataError
from datasets.photographs.imagenet9 import VARIANTS, removed
from datasets.task import task_of
from tests.errors import naming
from tests.trees import foreground, imagenet9, unpacked9


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
    assert len(crossed.group_names) == 9 * len(VARIANTS) and crossed.group_names[1] == "category=dog, variant=mixed_same"


def test_archives_as_they_unpack(tmp_path):
    """Every published variant; test images are those of bg_challenge, never the validation images that come with training."""
    root = unpacked9(tmp_path)
    for variant in VARIANTS:
        dataset = open_dataset("imagenet9", {"data_dir": root, "size": 32, "variant": variant, "train_variant": variant})
        for split, place in (("train", f"{variant}/train"), ("valid", f"{variant}/val"), ("test", f"bg_challenge/{variant}/val")):
            assert {row.image.parent.parent for row in dataset.rows(split)} == {root / place} and len(dataset.split(split)) == 9
        assert dataset.schema["variant"].classes[dataset.rows("test")[0].values["variant"]] == variant
        assert dataset.masks("test")[8].any()  # a mixed image has the mask of its foreground
        assert (dataset.masks("train") is None) == (variant != "original")  # whose no_fg is there
    alone = open_dataset("imagenet9", {"data_dir": root / "bg_challenge", "variant": "only_bg_t"})
    assert alone.rows("test")[3].image.parent.parent == root / "bg_challenge" / "only_bg_t" / "val"
    with pytest.raises(DataError, match=naming(f"train/original/train {root}/bg_challenge fg_mask in9l")):
        alone.rows("train")
    with pytest.raises(DataError, match=naming("train/original/val")):  # the test images are there, in val
        alone.rows("valid")


def test_archives_that_were_unpacked_into_one_another(tmp_path):
    root = unpacked9(tmp_path, ("original",))
    for name in ("train", "val"):
        shutil.copytree(root / "original" / name, root / "bg_challenge" / "original" / name, dirs_exist_ok=True)
    shutil.rmtree(root / "original")
    for folder, split in ((root, "test"), (root / "bg_challenge", "valid")):
        with pytest.raises(DataError, match=naming(root / "bg_challenge" / "original", "train val")):
            open_dataset("imagenet9", {"data_dir": folder}).rows(split)


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
        mask = dataset.mask(row)
        assert (mask & foreground()).sum() > 0.95 * (mask | foreground()).sum()
    assert open_dataset("imagenet9", {"data_dir": tree, "size": 32, "train_variant": "mixed_rand"}).masks("train") is None


@pytest.mark.parametrize("at_border", [False, True])
def test_what_was_taken_out_of_compressed_photographs_of_dark_things(tmp_path, at_border):
    """Of a smooth photograph with parts that are nearly black, a third of the foreground's too: exact black finds 0.8 of it."""
    random, (high, wide) = np.random.default_rng(0), (150, 200)
    pixels = np.array(Image.fromarray(random.integers(0, 160, (6, 8, 3), dtype=np.uint8)).resize((wide, high), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:high, :wide]
    inside = ((y - (105 if at_border else 75)) / 55) ** 2 + ((x - 100) / 60) ** 2 < 1
    pixels[60:90, 80:115] = 3  # an eye, a shadow
    pixels[100:104, 70:130] = 0
    without = pixels.copy()
    without[inside] = 0
    for name, values in (("original", pixels), ("no_fg", without)):
        Image.fromarray(values).save(tmp_path / f"{name}.JPEG", quality=90)
    found = removed(tmp_path / "original.JPEG", tmp_path / "no_fg.JPEG")
    assert (found & inside).sum() > 0.97 * (found | inside).sum()
    assert not removed(tmp_path / "original.JPEG", tmp_path / "original.JPEG").any()


def test_images_from_which_nothing_was_taken_have_an_empty_mask(tree):
    dataset = open_dataset("imagenet9", {"data_dir": tree, "size": 32})
    row = dataset.rows("train")[3]
    shutil.copy(row.image, row.mask)
    masks = dataset.masks("train")
    assert not masks[3].any() and masks[2].any()
    with pytest.warns(UserWarning, match=naming(f"1 9 train imagenet9 {row.image}")):
        sound = open_dataset("imagenet9", {"data_dir": tree, "size": 32, "skip_broken": "true", "masked_only": "true"})
        assert len(sound.split("train")) == 8 == len(sound.masks("train"))


def test_arrays_of_other_rank_and_images_of_other_size(tree):
    dataset = open_dataset("imagenet9", {"data_dir": tree, "size": 32})
    np.save(dataset.rows("test")[0].mask, np.ones((30, 40, 3)))
    with pytest.raises(DataError, match=naming("(30, 40, 3) (height, width)")):
        dataset.masks("test")[0]
    Image.new("RGB", (7, 9)).save(dataset.rows("train")[0].mask)
    with pytest.raises(DataError, match=naming("(9, 7) (30, 40)")):
        dataset.masks("train")[0]


@pytest.mark.parametrize(("options", "words"), [
    ({"variant": "mixed"}, "'mixed' original mixed_same"),
    ({"variant": ","}, "variant ','"),
    ({"train_variant": "original,blurred"}, "train_variant 'blurred'"),
    ({"variant": "mixed_next"}, "test/mixed_next/val bg_challenge/mixed_next/val bg_challenge"),
])
def test_unknown_and_missing_variants(tree, options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("imagenet9", {"data_dir": tree, **options}).split("test")


def test_unknown_and_missing_class_folders(tree):
    place = tree / "bg_challenge" / "train" / "original" / "train"
    (place / "09_tree").mkdir()
    with pytest.raises(DataError, match=naming("09_tree 00_dog 01_bird 02_wheeled vehicle")):
        open_dataset("imagenet9", {"data_dir": tree}).split("train")
    (place / "09_tree").rmdir()
    shutil.rmtree(place / "03_reptile")
    with pytest.raises(DataError, match=naming(f"03_reptile {place}")):
        open_dataset("imagenet9", {"data_dir": tree}).split("train")

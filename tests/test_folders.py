"""Data sets that are folders of photographs: the laws that hold for all, and what is said about trees that lack something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from trees import TREES, WIDE, change_json, photograph

from datasets import SPLITS, CausalDataset, SchemaError, open_dataset
from datasets.folders import FolderMasks, Row, read_picture_mask, share_of
from datasets.images import ImageFiles
from datasets.mnist import DataError
from datasets.registry import names
from datasets.task import task_of

pytestmark = pytest.mark.filterwarnings("ignore:waterbirds. this is not all")
SIZES = {"waterbirds": (12, 12, 12), "imagenet9": (9, 9, 9), "cameratraps": (4, 4, 4), "wildcam": (28, 4, 7)}
MASKED = ("waterbirds", "imagenet9", "cameratraps")


def opened(name: str, root, **options: object) -> CausalDataset:
    return open_dataset(name, {"data_dir": root, "size": 32, **options})


@pytest.fixture(scope="module", params=list(TREES))
def dataset(request, tmp_path_factory):
    return opened(request.param, TREES[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(params=list(TREES))
def name(request):
    return request.param


# ---------------------------------------------------------------------------------------------------- laws
def test_names_are_known():
    assert set(TREES) <= set(names())


def test_splits_are_read_one_by_one(dataset):
    paths = [str(row.image) for split in SPLITS for row in dataset.rows(split)]
    assert len(paths) == len(set(paths))
    for split, size in zip(SPLITS, SIZES[dataset.name], strict=True):
        rows = dataset.split(split)
        assert len(rows) == size and not rows.in_memory and rows.images.shape == (3, 32, 32)
        batch = rows.batch([0, size - 1])
        assert batch["image"].shape == (2, 3, 32, 32) and 0.1 < float(batch["image"].mean()) < 0.9


def test_task_and_environments(dataset):
    task = task_of(dataset)
    assert task.label.name == dataset.label and [v.name for v in task.spurious] == list(dataset.spurious)
    for split in SPLITS:
        assert task.split(split).attributes["environment"].shape == (len(dataset.split(split)),)
        assert int(task.split(split).attributes["group"].max()) < len(task.group_names)
    if dataset.environments("train") is not None and task.environment_count > 1:
        task.check_environments("IRM")


def test_masks_lie_on_the_foreground(dataset):
    if dataset.name not in MASKED:
        assert dataset.masks("train") is None
        return
    task_of(dataset).check_masks("a test")
    for split in SPLITS:
        masks, images = task_of(dataset).masks(split), dataset.split(split).images
        assert len(masks) == len(images)
        for k in range(len(masks)):
            mask, image = masks[k], torch.as_tensor(images[k]).float().mean(0)
            assert mask.dtype == torch.bool and mask.shape == (32, 32) and 0.1 < float(mask.float().mean()) < 0.7
            assert not 0 < k or image[mask].mean() > image[~mask].mean() + 40, (split, k)  # the first camera trap has a box on grass


def test_in_memory_is_the_same(dataset):
    again = opened(dataset.name, dataset.data_dir, in_memory="true")
    assert again.split("train").in_memory and again.training_fingerprint == dataset.training_fingerprint


def test_truth_is_not_known(dataset):
    assert not dataset.has_truth([dataset.label]) and dataset.measure(torch.zeros(1, 3, 32, 32)) == {}
    with pytest.raises(SchemaError, match=r"do\(.*\) has no true image|does not know its own process"):
        dataset.true_counterfactual("test", torch.arange(1), {dataset.label: torch.zeros(1)})


def test_grey_images_become_rgb(tmp_path, name):
    TREES[name](tmp_path)
    row = opened(name, tmp_path).rows("train")[1]
    photograph(row.image, 5, "L")
    image = opened(name, tmp_path).split("train").images[1]
    assert image.shape == (3, 32, 32) and (image[0] == image[1]).all() and (image[0] == image[2]).all()


# ---------------------------------------------------------------------------------------------------- bad input
def test_a_folder_is_needed(name, tmp_path):
    with pytest.raises(DataError, match=f"{name} needs --data-dir, the folder of "):
        open_dataset(name)
    with pytest.raises(DataError, match=f"{name}: .*nowhere is no folder; it should hold "):
        open_dataset(name, {"data_dir": tmp_path / "nowhere"})
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(DataError, match=f"{name}: no .* in {tmp_path}, which holds holiday.txt; it should hold "):
        opened(name, tmp_path).split("train")
    with pytest.raises(DataError, match="size=8 must be at least 16"):
        opened(name, tmp_path, size=8)


def test_missing_images_are_counted_and_one_is_named(name, tmp_path):
    TREES[name](tmp_path)
    lost = opened(name, tmp_path).rows("train")[1].image
    lost.unlink()
    if name == "imagenet9":  # has no listing: its images are those that are there
        assert lost not in [row.image for row in opened(name, tmp_path).rows("train")]
        return
    with pytest.raises(DataError, match=rf"{name}: 1 of \d+ images that are listed .* are missing, first {lost}; unpack all of"):
        opened(name, tmp_path).split("train")


def test_broken_images_are_named_or_left_out_and_counted(name, tmp_path):
    TREES[name](tmp_path)
    rows = opened(name, tmp_path).rows("train")
    rows[2].image.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=f"{rows[2].image} is broken"):
        opened(name, tmp_path).split("train").batch([1, 2])
    with pytest.warns(UserWarning, match=f"1 of {len(rows)} train images of {name} are broken and left out, first {rows[2].image}"):
        left = opened(name, tmp_path, skip_broken="true").split("train")
    assert len(left) == len(rows) - 1
    left.batch(range(len(left)))


@pytest.mark.parametrize("name", MASKED)
def test_images_without_mask(name, tmp_path):
    TREES[name](tmp_path)
    dataset = opened(name, tmp_path)
    rows = dataset.rows("train")
    if name == "cameratraps":
        change_json(tmp_path / "eccv_18_annotation_files" / "train_annotations.json", lambda table: table["annotations"][-2].pop("bbox"))
    else:
        rows[-1].mask.unlink()
    partial = opened(name, tmp_path)
    with pytest.warns(UserWarning, match=rf"1 of {len(rows)} train images of {name} have no mask, first .* \(no .*masked-only=true"):
        assert partial.masks("train") is None
    less = opened(name, tmp_path, masked_only="true")
    assert len(less.split("train")) == len(less.masks("train")) == len(rows) - 1


@pytest.mark.parametrize("name", ["waterbirds", "imagenet9"])
@pytest.mark.parametrize(("wrong", "words"), [
    (np.ones((7, 9), bool), "is 7×9 pixels, its image 30×40"), (np.zeros((30, 40), bool), "is empty: it has no foreground"),
    (None, "is broken"),
])
def test_wrong_masks(name, wrong, words, tmp_path):
    TREES[name](tmp_path)
    dataset = opened(name, tmp_path)
    path = dataset.rows("test")[0].mask
    if wrong is None:
        path.write_bytes(b"nothing")
    elif path.suffix == ".npy":
        np.save(path, wrong)
    else:
        Image.fromarray(wrong.astype(np.uint8) * 255).save(path)
    with pytest.raises(DataError, match=words):
        dataset.masks("test")[0]
    dataset.masks("test")[1]


# ---------------------------------------------------------------------------------------------------- pieces
def test_thin_foregrounds_do_not_vanish(tmp_path):
    photograph(tmp_path / "a.png", 0)
    mask = np.zeros((30, WIDE), bool)
    mask[11, 17] = True
    small = FolderMasks([Row(tmp_path / "a.png", {})], lambda row: mask, 16)[0]
    assert small.any() and float(small.float().mean()) < 0.05


def test_half_of_white_is_foreground(tmp_path):
    Image.fromarray(np.array([[0, 102, 127, 128, 153, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_picture_mask(tmp_path / "m.png")[0].tolist() == [False, False, False, True, True, True]


def test_crop_keeps_the_centre(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    pixels[4:60, 4:60] = np.arange(56, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    assert np.array_equal(ImageFiles([tmp_path / "frame.png"], (1, 56, 56), crop=0.875)[0][0], pixels[4:60, 4:60])


def test_share_is_of_each_value_and_of_the_seed():
    values = [0] * 20 + [1] * 40 + [5] * 10
    held = share_of(values, 0.2, 3)
    assert [int(held[a:b].sum()) for a, b in ((0, 20), (20, 60), (60, 70))] == [4, 8, 2]
    assert np.array_equal(held, share_of(values, 0.2, 3)) and not np.array_equal(held, share_of(values, 0.2, 4))

"""Data sets that are folders of photographs: the laws that hold for all, and what is said about trees that lack something."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import SPLITS, CausalDataset, SchemaError, open_dataset
from datasets.files.idx import DataError
from datasets.files.images import ImageFiles
from datasets.files.masks import read_picture_mask
from datasets.files.table import FolderMasks, Folders, Row, share_of
from datasets.task import task_of
from tests.errors import naming
from tests.registered import data_sets
from tests.trees import TREES, WIDE, change_json, photograph

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
    assert set(TREES) == set(data_sets(Folders)) == set(SIZES)


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
    with pytest.raises(SchemaError, match=naming(dataset.title)):
        dataset.true_counterfactual("test", torch.arange(1), {dataset.label: torch.zeros(1)})


def test_grey_images_become_rgb(tmp_path, name):
    TREES[name](tmp_path)
    row = opened(name, tmp_path).rows("train")[1]
    photograph(row.image, 5, "L")
    image = opened(name, tmp_path).split("train").images[1]
    assert image.shape == (3, 32, 32) and (image[0] == image[1]).all() and (image[0] == image[2]).all()


# ---------------------------------------------------------------------------------------------------- bad input
def test_a_folder_is_needed(name, tmp_path):
    with pytest.raises(DataError, match=naming(f"{name} --data-dir")):
        open_dataset(name)
    with pytest.raises(DataError, match=naming(f"{name} {tmp_path}/nowhere")):
        open_dataset(name, {"data_dir": tmp_path / "nowhere"})
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(DataError, match=naming(f"{name} {tmp_path} holiday.txt")):
        opened(name, tmp_path).split("train")
    with pytest.raises(SchemaError, match=naming("size=8 [16, 8192]")):
        opened(name, tmp_path, size=8)


def test_missing_images_are_counted_and_one_is_named(name, tmp_path):
    TREES[name](tmp_path)
    lost = opened(name, tmp_path).rows("train")[1].image
    lost.unlink()
    if name == "imagenet9":  # has no listing: its images are those that are there
        assert lost not in [row.image for row in opened(name, tmp_path).rows("train")]
        return
    with pytest.raises(DataError, match=naming(f"{name} 1 {lost}")):
        opened(name, tmp_path).split("train")


def test_broken_images_are_named_or_left_out_and_counted(name, tmp_path):
    TREES[name](tmp_path)
    rows = opened(name, tmp_path).rows("train")
    rows[2].image.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=naming(f"{rows[2].image} --option skip-broken=true")) as caught:
        opened(name, tmp_path).split("train").batch([1, 2])
    assert str(caught.value).count(str(rows[2].image)) == 1
    with pytest.warns(UserWarning, match=naming(f"1 {len(rows)} train {name} {rows[2].image}")):
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
    with pytest.warns(UserWarning, match=naming(f"1 {len(rows)} train {name} masked-only=true")):
        assert partial.masks("train") is None
    less = opened(name, tmp_path, masked_only="true")
    assert len(less.split("train")) == len(less.masks("train")) == len(rows) - 1


@pytest.mark.parametrize("name", ["waterbirds", "imagenet9"])
@pytest.mark.parametrize(("wrong", "words"), [
    (np.ones((7, 9), bool), "7×9 30×40"), (np.zeros((30, 40), bool), "skip-broken=true"),
    (None, "skip-broken=true"),
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
    with pytest.raises(DataError, match=naming(path.stem, words)):
        dataset.masks("test")[0]
    dataset.masks("test")[1]


@pytest.mark.parametrize("name", ["waterbirds", "imagenet9"])
@pytest.mark.parametrize("wrong", [np.ones((7, 9), bool), np.zeros((30, 40), bool), None])
def test_wrong_masks_count_as_missing(name, wrong, tmp_path):
    TREES[name](tmp_path)
    row = opened(name, tmp_path).rows("test")[1]
    if wrong is None:
        row.mask.write_bytes(b"nothing")
    elif row.mask.suffix == ".npy":
        np.save(row.mask, wrong)
    else:
        Image.fromarray(wrong.astype(np.uint8) * 255).save(row.mask)
    count = len(opened(name, tmp_path).rows("test"))
    dataset = opened(name, tmp_path, skip_broken="true")
    with pytest.warns(UserWarning, match=naming(f"1 {count} test {name}")):
        assert len(dataset.split("test")) == count
    with pytest.warns(UserWarning, match=naming(f"1 {count} test {name} {row.image}")):
        assert dataset.masks("test") is None
    with pytest.warns(UserWarning, match=naming(f"1 {count} test {name}")):
        less = opened(name, tmp_path, skip_broken="true", masked_only="true")
        assert len(less.split("test")) == count - 1
    task_of(less).masks("test")


# ---------------------------------------------------------------------------------------------------- pieces
def test_masks_are_of_their_images_own_size(tmp_path):
    """Also if one happens to have the size that images are resized to; unless it was made for that size."""
    photograph(tmp_path / "a.png", 0)
    mask = np.ones((32, 32), bool)
    with pytest.raises(DataError, match=naming(tmp_path / "a.png", "32×32 30×40")):
        FolderMasks([Row(tmp_path / "a.png", {})], lambda row: mask, 32)[0]
    assert FolderMasks([Row(tmp_path / "a.png", {})], lambda row: mask, 32, sized=True)[0].all()


def test_masks_are_cut_as_their_images_are(tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:30, 20:60] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for crop in (1.0, 0.875, 0.5):
        mask = FolderMasks([Row(tmp_path / "a.png", {})], lambda row: pixels[..., 0] > 0, 28, crop)[0]
        image = torch.from_numpy(ImageFiles([tmp_path / "a.png"], (3, 28, 28), crop)[0].copy())[0]
        shown = image > 0
        grown = torch.nn.functional.max_pool2d(shown[None].float(), 3, 1, 1)[0] > 0
        assert torch.equal(mask, grown) and shown.any() and not grown.all(), crop
    corner = np.zeros((64, 96), bool)
    corner[:5, :5] = True
    with pytest.raises(DataError, match=naming(tmp_path / "a.png", "skip-broken=true")):
        FolderMasks([Row(tmp_path / "a.png", {})], lambda row: corner, 28, 0.5)[0]


def test_thin_foregrounds_do_not_vanish(tmp_path):
    photograph(tmp_path / "a.png", 0)
    mask = np.zeros((30, WIDE), bool)
    mask[11, 17] = True
    small = FolderMasks([Row(tmp_path / "a.png", {})], lambda row: mask, 16)[0]
    assert small.any() and float(small.float().mean()) < 0.1


@pytest.mark.parametrize(("ending", "size", "left"), [
    (".png", (300, 400), 0), (".png", (30, 40), 0), (".png", (64, 64), 0), (".jpg", (300, 400), 12)])
def test_nothing_of_the_foreground_is_left_outside_its_mask(tmp_path, ending, size, left):
    """Also not in pixels that resizing mixes from both sides of its edge."""
    y, x = np.mgrid[:size[0], :size[1]] / np.array(size)[:, None, None]
    bird = (y - 0.5) ** 2 / 0.09 + (x - 0.45) ** 2 / 0.04 < 1
    path = tmp_path / f"bird{ending}"
    Image.fromarray(np.where(bird[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)).save(path, quality=90)
    for crop in (1.0, 0.875):
        mask = FolderMasks([Row(path, {})], lambda row: bird, 64, crop)[0].numpy()
        red, _, blue = ImageFiles([path], (3, 64, 64), crop)[0]
        assert red[~mask].max() <= left and 0.1 < mask.mean() < 0.4 and (blue[mask] < 128).mean() > 0.7, crop


def test_masks_that_are_missing_say_where_they_are_expected(tmp_path):
    shutil.rmtree(TREES["waterbirds"](tmp_path / "birds") / "segmentations")
    told = (f"waterbirds segmentations/ {tmp_path}/birds {tmp_path}/birds/segmentations/<class>/"
            "<image>.png segmentations.tgz")
    with pytest.raises(SchemaError, match=naming(told)):
        task_of(opened("waterbirds", tmp_path / "birds")).check_masks("a test")
    shutil.rmtree(TREES["imagenet9"](tmp_path / "nine") / "bg_challenge" / "train" / "no_fg")
    told = "imagenet9 /train/fg_mask/train/00_dog/n00_1.npy /train/no_fg/train/00_dog/n00_1.JPEG"
    with pytest.raises(SchemaError, match=naming(told)):
        task_of(opened("imagenet9", tmp_path / "nine")).check_masks("a test")
    with pytest.raises(SchemaError, match=naming("wildcam masks(split)")):
        task_of(opened("wildcam", TREES["wildcam"](tmp_path / "wild"))).check_masks("a test")


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

"""Boxes as masks, and transforms that masks and boxes follow."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from datasets.files.boxes import boxes_to_masks
from datasets.schema import SchemaError
from experiments.augmenters.geometry import GeometricTransform, crop_and_flip
from mechanisms.training.noise import seeded
from tests.errors import naming, says

HEIGHT, WIDTH = 12, 20  # not square: a swap of the two shows


@pytest.fixture
def batch():
    """Images whose channels say where each pixel is from, and masks and boxes of the same rectangle."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) / HEIGHT, torch.arange(WIDTH) / WIDTH, indexing="ij")
    boxes = torch.tensor([[4, 2, 9, 7], [0, 0, 20, 12], [13, 5, 17, 11], [2, 8, 3, 9]], dtype=torch.float32)[:, None]
    masks = boxes_to_masks(boxes, (HEIGHT, WIDTH))
    return {"image": torch.stack([y, x])[None].repeat(4, 1, 1, 1), "mask": masks, "boxes": boxes, "label": torch.arange(4)}


# ---------------------------------------------------------------------------------------------------- boxes
def test_boxes_are_left_top_right_bottom():
    masks = boxes_to_masks(torch.tensor([[[3, 1, 7, 4]]]), (HEIGHT, WIDTH))
    assert masks.shape == (1, HEIGHT, WIDTH) and masks.dtype == torch.bool
    assert masks[0, 1:4, 3:7].all() and int(masks.sum()) == 3 * 4


def test_several_boxes_unite_and_none_is_an_empty_mask():
    masks = boxes_to_masks([torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 9]]), torch.zeros(0, 4), []], (HEIGHT, WIDTH))
    assert masks.flatten(1).sum(1).tolist() == [7, 0, 0]


def test_what_protrudes_is_cut_and_what_is_touched_counts():
    masks = boxes_to_masks([[[-3, -1, 2.2, 1.5]], [[18.5, 10, 99, 99]]], (HEIGHT, WIDTH))
    assert masks[0, :2, :3].all() and masks[1, 10:, 18:].all()
    assert masks.flatten(1).sum(1).tolist() == [6, 4]


@pytest.mark.parametrize(("box", "told"), [
    ([20, 0, 25, 5], "20, 0, 25, 5 12×20"), ([0, 12, 5, 14], "12×20"), ([-5, 0, 0, 5], "12×20"),
    ([5, 5, 4, 6], "5, 5, 4, 6"), ([0, 0, float("nan"), 5], "0, 0, nan, 5"), ([1, 2, 3], "(1, 3) (K, 4)"),
])
def test_wrong_boxes_are_named(box, told):
    with pytest.raises(SchemaError, match=naming(told)) as error:
        boxes_to_masks([[[0, 0, 1, 1]], [box]], (HEIGHT, WIDTH), "boxes of train.json")
    assert says(str(error.value), "train.json 1")


# ---------------------------------------------------------------------------------------------------- transforms
def test_masks_and_boxes_follow_their_image(batch):
    new = crop_and_flip(7, 11)(batch, seeded(0))
    assert new["image"].shape == (4, 2, 7, 11) and new["mask"].shape == (4, 7, 11) and new["mask"].dtype == torch.bool
    assert torch.equal(new["label"], batch["label"])
    where = (new["image"] * torch.tensor([HEIGHT, WIDTH]).view(1, 2, 1, 1)).round().long()  # each pixel tells where it was
    for k in range(4):
        y, x = where[k]
        assert torch.equal(new["mask"][k], batch["mask"][k][y, x])
    assert torch.equal(boxes_to_masks(new["boxes"], (7, 11)), new["mask"])


def test_every_image_has_an_offset_of_its_own_within_the_image(batch):
    many = {"image": batch["image"][:1].expand(200, -1, -1, -1)}
    corner = (crop_and_flip(7, 11, flip=0)(many, seeded(0))["image"][:, :, 0, 0] * torch.tensor([HEIGHT, WIDTH])).round().long()
    assert set(corner[:, 0].tolist()) == set(range(HEIGHT - 7 + 1)) and set(corner[:, 1].tolist()) == set(range(WIDTH - 11 + 1))


def test_the_border_is_background(batch):
    full = {"image": torch.ones(8, 1, 4, 6), "mask": torch.ones(8, 4, 6, dtype=torch.bool)}
    new = crop_and_flip(4, 6, padding=2)(full, seeded(1))
    assert torch.equal(new["image"][:, 0] > 0, new["mask"]) and not new["mask"].all()


def test_the_generator_reproduces_and_torch_is_left_alone(batch):
    before, transform = torch.get_rng_state(), crop_and_flip(7, 11)
    first, again, other = (transform(batch, seeded(seed))["image"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_see_what_one_does(batch):
    transform, whole = crop_and_flip(7, 11), crop_and_flip(7, 11)(batch, seeded(5))
    for rank in range(2):
        half = transform({name: value[2 * rank:2 * rank + 2] for name, value in batch.items()}, seeded(5), rank, 2)
        assert all(torch.equal(half[name], whole[name][2 * rank:2 * rank + 2]) for name in batch)


def test_resized_masks_stay_bool(batch):
    new = GeometricTransform(v2.Resize((24, 40)))(batch, seeded(0))
    assert torch.equal(new["mask"], batch["mask"].repeat_interleave(2, 1).repeat_interleave(2, 2))
    torch.testing.assert_close(new["boxes"], 2 * batch["boxes"])


def test_what_cannot_be_done_is_said(batch):
    with pytest.raises(SchemaError, match=naming("12×20 13 11")):
        crop_and_flip(13, 11)(batch, seeded(0))
    with pytest.raises(SchemaError, match=naming("(4, 20, 12)")):
        crop_and_flip(5, 5)({**batch, "mask": batch["mask"].transpose(1, 2)}, seeded(0))
    with pytest.raises(SchemaError, match=naming("transform images")):
        GeometricTransform(v2.RandomResize(8, 16))(batch, seeded(0))


def test_training_moves_masks_and_further_images_with_their_image(tmp_path):
    """``--crop`` and ``--flip`` reach training batches, of algorithms with masks too, and tell trainings apart."""
    from datasets import open_dataset
    from datasets.task import task_of
    from experiments.training.options import TrainingFlags
    from experiments.training.plan import resolve
    from experiments.training.rows import Rows
    from experiments.training.trainer import Trainer
    from mechanisms.training.config import RunOptions

    dataset = open_dataset("photo-backgrounds", {"train_digits": 32, "valid_digits": 16, "test_digits": 16})
    flags = TrainingFlags(steps=2, batch_size=16, crop=3, flip=True, validations=1)
    trainer = Trainer(Rows(task_of(dataset)), resolve("cf-f", dataset, flags), RunOptions(tmp_path), None)
    augment, batch = trainer.augmentation(), trainer.train.batch(slice(0, 8))
    moved = augment({**batch, "counterfactual": batch["image"][:, None]}, torch.Generator().manual_seed(0))
    assert not torch.equal(moved["image"], batch["image"]) and torch.equal(moved["counterfactual"][:, 0], moved["image"])
    there = moved["mask"][:, None] & (moved["image"] > 0.9).all(1, keepdim=True)  # the digit's strokes are in its mask still
    bright = (batch["mask"][:, None] & (batch["image"] > 0.9).all(1, keepdim=True)).sum((1, 2, 3))
    assert (there.sum((1, 2, 3)) > 0.5 * bright).all()
    model = trainer.build()
    assert trainer.describe(model)["augmentation"] == {"crop": 3, "flip": True}
    trainer.fit(model)
    plain = Trainer(trainer.rows, resolve("erm", dataset, TrainingFlags(steps=2)), RunOptions(tmp_path), None)
    assert plain.augmentation() is None and "augmentation" not in plain.describe(plain.build())

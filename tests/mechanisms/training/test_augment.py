"""Augmentation: moves pixels and nothing else, reproducibly, the same for one process and for two."""

import torch

from mechanisms.training.augment import augmentation
from mechanisms.training.noise import seeded


def batch(rows=6):
    images = torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"age": torch.arange(rows).float(), "image": images}


def test_nothing_asked_is_nothing_done():
    assert augmentation() is None


def test_shift_moves_by_at_most_so_many_pixels_and_repeats_edges():
    original = batch(64)
    moved = augmentation(shift=2)(original, seeded(1), 0, 1)
    assert torch.equal(moved["age"], original["age"])
    padded = torch.nn.functional.pad(original["image"], (2, 2, 2, 2), mode="replicate")
    seen = set()
    for row in range(64):
        fits = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[row, :, y:y + 8, x:x + 8], moved["image"][row])]
        assert fits
        seen.update(fits)
    assert len(seen) > 10


def test_flip_mirrors_about_half_of_the_rows():
    original = batch(200)
    flipped = augmentation(flip=True)(original, seeded(1), 0, 1)["image"]
    mirrored = (flipped == original["image"].flip(-1)).flatten(1).all(1)
    kept = (flipped == original["image"]).flatten(1).all(1)
    assert (mirrored | kept).all() and 70 < int(mirrored.sum()) < 130


def test_two_processes_see_what_one_would():
    whole, augment = batch(8), augmentation(shift=1, flip=True)
    one = augment(whole, seeded(3, 4), 0, 1)["image"]
    halves = [augment({k: v[r * 4:r * 4 + 4] for k, v in whole.items()}, seeded(3, 4), r, 2)["image"] for r in range(2)]
    assert torch.equal(one, torch.cat(halves))
    assert torch.equal(one, augment(whole, seeded(3, 4), 0, 1)["image"])

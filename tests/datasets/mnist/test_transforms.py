"""Named transformations, and the data sets of canonical and transformed images made with them or read from folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets.errors import UserError
from datasets.files.folder import image_paths, read_folder
from datasets.mnist.digits import DigitSplits
from datasets.mnist.transformed import NONE
from datasets.mnist.transforms import DIRECTIONS, KINDS, TEN, parse
from datasets.registry import open_dataset
from tests.errors import naming

FEW = {"train_digits": "40", "valid_digits": "20", "test_digits": "20"}


def act(text: str, images: Tensor, noise: Tensor | None = None) -> Tensor:
    (transform,) = parse(text)
    return transform(images, torch.zeros_like(images) if noise is None else noise)


def picture(count: int = 3, channels: int = 1) -> Tensor:
    images = torch.zeros(count, channels, 32, 32)
    images[..., 10:22, 12:20] = torch.rand(count, channels, 12, 8, generator=torch.Generator().manual_seed(0))
    return images


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_transformation_changes_images_and_keeps_their_range(name, channels):
    images = picture(channels=channels)
    before, noise = images.clone(), torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    moved = act(name, images, noise)
    assert moved.shape == images.shape and 0 <= moved.min() and moved.max() <= 1 and torch.equal(images, before)
    assert (moved - images).abs().mean() > 0.002 and torch.equal(moved, act(name, images, noise))
    assert torch.allclose(act(name, images[:1], noise[:1]), moved[:1], atol=1e-6)  # of the image alone


@pytest.mark.parametrize("name", DIRECTIONS)
def test_translations_move_by_their_pixels(name):
    dy, dx = DIRECTIONS[name]
    point = torch.zeros(1, 1, 32, 32)
    point[..., 16, 16] = 1
    assert act(f"{name}=5", point)[0, 0].nonzero().tolist() == [[16 + 5 * dy, 16 + 5 * dx]]
    assert act("left=4", act("right=4", picture())).equal(picture())


def test_known_points():
    images = picture()
    assert act("invert", act("invert", images)).allclose(images) and act("contrast=0.4", images).min() == pytest.approx(0.3)
    assert act("scale=1", images).allclose(images, atol=1e-5) and act("rotate=0", images).allclose(images, atol=1e-5)
    grey, noise = torch.full((1, 1, 64, 64), 0.5), torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(act("noise=0.01", grey, noise).var()) == pytest.approx(0.01, rel=0.1)
    assert float(act("blur=2", images).sum() / images.sum()) == pytest.approx(1, abs=1e-4)
    bright = [float(act(f"thickness={t}", images).sum()) for t in (-2, 0, 3)]
    assert bright[0] < bright[1] < bright[2]


@pytest.mark.parametrize("text, message", [
    ("", "--transforms ''"), (" , ", "--transforms"),
    ("sideways", "'sideways' up down"),
    ("right,right", "--transforms right"), ("right,right=4", "--transforms right=4"),
    ("noise=.25,up,noise", "--transforms noise=.25"), ("noise=much", "'noise=much'"),
    ("rotate=400", "'rotate=400' -180 180"), ("right=2.5", "'right=2.5'"),
    ("right=nan", "'right=nan' 1 16"), ("blur=0", "'blur=0' 0.3 5")])
def test_bad_transformations_are_named(text, message):
    with pytest.raises(UserError, match=naming(message)):
        parse(text)


def test_ten_are_the_ten():
    assert tuple(t.text for t in parse("ten")) == TEN and len(TEN) == 10
    assert len(parse("right,left,right=3,noise,noise=.2")) == 5  # the same kind, or the same strength, is not the same


# ---------------------------------------------------------------------------------------------------- transformed digits
def test_canonical_and_transformed_digits_are_disjoint():
    dataset = open_dataset("transformed-mnist", {"transforms": "right,noise,invert", **FEW})
    assert issubclass(type(dataset), DigitSplits) and dataset.mechanisms == ("right", "noise", "invert")
    assert dataset.transformations == parse("right,noise,invert")
    canonical, clean = dataset.canonical("train"), dataset.clean("train")[::3]
    assert len(canonical) == len(clean) == 20 and not {bytes(x.numpy()) for x in canonical} & {bytes(x.numpy()) for x in clean}
    rows = dataset.split("train")
    assert len(rows) == 60 and rows.attributes["mechanism"][:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(rows.images[2::3], 255 - clean) and dataset.graph.image.shape == (1, 32, 32)
    assert torch.equal(dataset.subjects("train")[:6], torch.tensor([0, 0, 0, 1, 1, 1]))


def test_true_counterfactuals_of_a_mechanism():
    dataset = open_dataset("transformed-mnist", {"transforms": "noise,down", "channels": "3", **FEW})
    rows, index = dataset.split("test"), torch.tensor([0, 1, 5])
    none = dataset.schema["mechanism"].classes.index(NONE)
    under = {k: dataset.true_counterfactual("test", index, {"mechanism": torch.tensor([k])})["image"] for k in (0, 1, none)}
    assert torch.equal((under[none] * 255).round().to(torch.uint8), dataset.clean("test")[index])
    assert torch.equal((under[0][0] * 255).round().to(torch.uint8), rows.images[0])  # its own noise
    assert torch.equal((under[1][0] * 255).round().to(torch.uint8), rows.images[1])
    assert torch.equal(dataset.true_counterfactual("test", index, {})["image"], rows.batch(index)["image"])


def test_chosen_digits_and_colours():
    dataset = open_dataset("transformed-mnist", {"digits": "6, 1", "transforms": "invert", "channels": "3", **FEW})
    assert set(dataset.split("train").attributes["digit"].tolist()) == {1, 6}
    colours = dataset.canonical("train").flatten(2).amax(2)
    assert colours.shape[1] == 3 and len(colours.unique(dim=0)) > 1 and bool((colours.amin(1) == 0).all())


@pytest.mark.parametrize("options, message", [
    ({"digits": "11"}, "digits '11' 0 1"), ({"digits": "3,3"}, "digits 3"),
    ({"channels": "2"}, "channels=2 1 3"), ({"transforms": ""}, "transforms"),
    ({"digits": "6", "train_digits": "3"}, "train transformed-mnist 1 6 2")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=naming(message)):
        open_dataset("transformed-mnist", {**FEW, **options}).split("train")


# ---------------------------------------------------------------------------------------------------- folders
def write(folder: Path, count: int, size: tuple[int, int] = (32, 32), level: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.random.default_rng([k, level]).integers(0, 256, (size[1], size[0]), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")


def test_two_folders_are_a_data_set(tmp_path):
    write(tmp_path / "canonical", 20)
    write(tmp_path / "transformed", 30, level=1)
    dataset = open_dataset("unpaired-folders", {"data_dir": tmp_path})
    parts = [len(dataset.split(s)) for s in ("train", "valid", "test")]
    assert parts == [24, 3, 3] and len(dataset.canonical("train")) == 16 and dataset.mechanisms == () and dataset.clean("train") is None
    assert set(dataset.split("train").attributes) == set()
    colour = open_dataset("unpaired-folders", {"data_dir": tmp_path, "channels": "3", "size": "16"})
    assert colour.split("train").images.shape[1:] == (3, 16, 16)


def test_subfolders_are_mechanisms(tmp_path):
    write(tmp_path / "canonical", 10)
    for k, name in enumerate(("blurred", "dark")):
        write(tmp_path / "transformed" / name, 20, level=k + 1)
    dataset = open_dataset("unpaired-folders", {"data_dir": tmp_path})
    assert dataset.mechanisms == ("blurred", "dark") and set(dataset.split("train").attributes["mechanism"].tolist()) == {0, 1}


def numbered(folder: Path, names: list[str], first: int) -> None:
    """Images of one grey level each, ``first`` for the first one, so that an image tells its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.new("L", (8, 8), first + k).save(folder / name)


@pytest.mark.parametrize("seed", range(5))
def test_a_subject_is_in_one_split(tmp_path, seed):
    """Files of one stem: in two sub-folders, in canonical/, with another ending."""
    numbered(tmp_path / "canonical", [f"{k}.png" for k in range(12)], 0)  # 0–11
    numbered(tmp_path / "transformed" / "a", [f"{k}.png" for k in range(4, 24)], 104)  # 100 more than their names
    numbered(tmp_path / "transformed" / "b", [f"{k}.bmp" for k in range(4, 24)], 104)
    dataset = open_dataset("unpaired-folders", {"data_dir": tmp_path, "seed": str(seed)})
    held, seen = {}, 0
    for split in ("train", "valid", "test"):
        rows, canonical = dataset.split(split), dataset.canonical(split)[:, 0, 0, 0].tolist()
        names = (rows.images[:, 0, 0, 0].long() - 100).tolist()
        assert names and canonical and all(held.setdefault(name, split) == split for name in [*names, *canonical])
        acted = rows.attributes["mechanism"].tolist()
        assert sorted(zip(names, acted, strict=True)) == [(n, m) for n in sorted(set(names)) for m in (0, 1)]
        subjects = dataset.subjects(split).tolist()
        assert len(set(zip(names, subjects, strict=True))) == len(set(names)) == len(set(subjects))
        seen += len(names) + len(canonical)
    assert seen == 52 and set(held) == set(range(24)) and list(held.values()).count("valid") in (2, 3)


def test_pairs_are_in_no_order(tmp_path):
    for name in ("canonical", "transformed"):
        numbered(tmp_path / name, [f"{k}.png" for k in range(100)], 0)
    dataset = open_dataset("unpaired-folders", {"data_dir": tmp_path})
    canonical, images = dataset.canonical("train"), dataset.split("train").images
    assert sorted(canonical.flatten(1)[:, 0].tolist()) == sorted(images.flatten(1)[:, 0].tolist())
    assert (canonical == images).float().mean() < 0.1


def test_subjects_are_what_is_counted(tmp_path):
    write(tmp_path / "canonical", 20)
    for name in ("a", "b"):
        write(tmp_path / "transformed" / name, 6)
    with pytest.raises(UserError, match=naming("unpaired-folders 12 6 10")):
        open_dataset("unpaired-folders", {"data_dir": tmp_path}).split("train")


def test_hidden_folders_are_no_mechanisms(tmp_path):
    write(tmp_path / "canonical", 12)
    write(tmp_path / "transformed", 12, level=1)
    for name in (".ipynb_checkpoints", ".git", "__MACOSX"):
        write(tmp_path / "transformed" / name, 3)
    (tmp_path / "transformed" / "._000.png").write_bytes(b"not an image")
    dataset = open_dataset("unpaired-folders", {"data_dir": tmp_path})
    assert dataset.mechanisms == () and sum(len(dataset.split(split)) for split in ("train", "valid", "test")) == 12
    assert len(image_paths(tmp_path / "transformed", nested=True)) == 12


def test_loose_images_beside_subfolders_are_not_dropped_silently(tmp_path):
    write(tmp_path / "canonical", 12)
    write(tmp_path / "transformed", 2)
    write(tmp_path / "transformed" / "dark", 12, level=1)
    with pytest.raises(UserError, match=naming(tmp_path / "transformed", "2 000.png dark")):
        open_dataset("unpaired-folders", {"data_dir": tmp_path})


def test_other_canonical_images_are_another_data_set(tmp_path):
    def told() -> str:
        return open_dataset("unpaired-folders", {"data_dir": tmp_path}).training_fingerprint

    numbered(tmp_path / "canonical", [f"{k}.png" for k in range(20)], 0)
    write(tmp_path / "transformed", 20, (8, 8))
    before = told()
    assert told() == before
    numbered(tmp_path / "canonical", [f"{k}.png" for k in range(20)], 50)
    assert told() != before
    numbered(tmp_path / "canonical", [f"{k}.png" for k in range(20)], 0)
    assert told() == before


def test_folders_that_are_no_data_set(tmp_path):
    def opened(**options: str) -> None:
        open_dataset("unpaired-folders", {"data_dir": tmp_path, **options}).split("train")

    with pytest.raises(UserError, match=naming("unpaired-folders --data-dir")):
        open_dataset("unpaired-folders")
    with pytest.raises(UserError, match=naming(tmp_path / "canonical", tmp_path / "transformed")):
        opened()
    (tmp_path / "canonical").mkdir()
    write(tmp_path / "transformed", 12)
    with pytest.raises(UserError, match=naming(tmp_path / "canonical", "png jpg jpeg bmp gif tif webp")):
        opened()
    write(tmp_path / "canonical", 12, (16, 16))
    with pytest.raises(UserError, match=naming(tmp_path / "canonical", 16, tmp_path / "transformed", 32)):
        opened()
    write(tmp_path / "canonical", 3, (32, 32))
    with pytest.raises(UserError, match=naming(tmp_path / "canonical" / "000.png", "32 003.png 16")):
        opened()
    write(tmp_path / "canonical", 12, (32, 32))
    (tmp_path / "canonical" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=naming("bad.png")):
        opened()
    (tmp_path / "canonical" / "bad.png").unlink()
    for path in sorted((tmp_path / "canonical").iterdir())[5:]:
        path.unlink()
    with pytest.raises(UserError, match=naming("unpaired-folders 5 10")):
        opened()


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UserError, match=naming(tmp_path, "png jpg jpeg bmp gif tif webp")):
        read_folder(tmp_path, (1, 8, 8))
    with pytest.raises(UserError, match=naming(tmp_path / "nowhere")):
        read_folder(tmp_path / "nowhere", (1, 8, 8))

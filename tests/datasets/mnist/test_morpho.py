"""Morpho-MNIST and its siblings: the equations, the laws of true counterfactuals, and the official images."""

from __future__ import annotations

import gzip
import math
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import SPLITS, SchemaError, open_dataset
from datasets.files.idx import DataError, load_mnist, read_digits
from datasets.mnist.morpho_official import read_table
from datasets.mnist.morphology import (
    Shape,
    half_widths,
    mean_thickness,
    measure_intensity,
    measure_thickness,
    shrink,
    with_intensity,
)
from tests.errors import naming, says

SMALL = {"train_digits": 40, "valid_digits": 8, "test_digits": 24}
NAMES = ("morphomnist", "morphomnist-slant", "morphomnist-width")


@pytest.fixture(scope="module", params=NAMES)
def dataset(request, session_cache):
    return open_dataset(request.param, SMALL)


@pytest.fixture(scope="module")
def morpho(session_cache):
    return open_dataset("morphomnist", SMALL)


def equal(a: dict, b: dict, names=None) -> bool:
    return all(torch.equal(a[n], b[n]) for n in (names or a))


# ---------------------------------------------------------------------------------------------------- shapes
def test_structuring_element_is_a_square_then_a_rounded_one():
    assert half_widths(0, 1) == (0,)
    assert half_widths(5, 1) == (5,) * 6
    assert half_widths(6, 1) == (6, 6, 6, 6, 6, 6, 5)
    widths = half_widths(13, 1)
    assert widths[0] == widths[8] == 13 and widths[9] < 13 and widths[13] == 8
    assert list(widths) == sorted(widths, reverse=True)


def test_dilation_and_erosion_agree_with_scipy():
    from scipy import ndimage

    digit = load_mnist()["train"][0][0]
    own = float(mean_thickness([digit], 16)[0])
    shape = Shape(digit, own, 16)
    for change in (-0.7, 1.3):
        radius = int(8 * abs(change))
        widths = half_widths(radius, 1)
        offsets = np.abs(np.arange(-radius, radius + 1))
        element = offsets[None] <= np.array(widths)[offsets][:, None]
        operation = ndimage.binary_dilation if change > 0 else ndimage.binary_erosion
        expected = operation(shape.mask, element)
        assert np.array_equal(shape.at(own + change + math.copysign(1e-6, change)) > 0.5, expected)


def test_thickness_of_a_bar():
    bar = np.zeros((28, 28), np.uint8)
    bar[4:24, 12:16] = 255
    assert mean_thickness([bar], 16)[0] == pytest.approx(4, abs=0.35)


def test_black_and_flat_images_do_not_crash():
    images = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    assert measure_thickness(images).tolist() == [0, 0]
    assert measure_intensity(images).tolist() == [0, 255]
    empty = Shape(np.zeros((28, 28), np.uint8), 0.0, 8)
    assert with_intensity(shrink(empty.at(3.0), 8), 200).max() == 0


@pytest.mark.parametrize(("exact", "bound", "count"), [(False, 1.25, 150), (True, 0.5, 100)], ids=["fast", "exact"])
def test_official_images(shared_data, exact, bound, count):
    digits, _ = read_digits(shared_data / "mnist", "t10k")
    official, _ = read_digits(shared_data / "morphomnist_official", "t10k")
    rows = read_table(shared_data / "morphomnist_official" / "t10k-morpho.csv", len(official))
    index = np.arange(0, len(official), len(official) // count)
    columns = [rows[name][None, index] for name in ("thickness", "intensity")]
    images = open_dataset("morphomnist", {"exact": exact, "workers": 1}).render(digits[index], *columns)[1][0]
    assert np.abs(images.astype(int) - official[index]).mean() <= bound


def test_measuring_official_images(shared_data):
    official = open_dataset("morphomnist-official", {"data_dir": shared_data / "morphomnist_official"})
    batch = official.split("test").batch(range(250))
    found = official.measure(batch["image"])
    assert (found["thickness"] - batch["thickness"]).abs().mean() < 0.15
    assert (found["intensity"] - batch["intensity"]).abs().mean() < 0.7


def test_rendering_is_fast():
    digits = load_mnist()["train"][0][:64]
    dataset = open_dataset("morphomnist", {"workers": 1})
    attributes = np.random.default_rng(0).uniform(1.5, 4, (5, 64))
    start = time.process_time()
    dataset.render(digits, attributes, np.full((5, 64), 200.0))
    assert (time.process_time() - start) / 320 < 0.010  # 0.001 on an idle core; the margin is for a busy machine


# ---------------------------------------------------------------------------------------------------- the process
def test_equation_of_intensity(morpho):
    for split in SPLITS:
        arrays = morpho._arrays(split)
        expected = 64 + 191 / (1 + np.exp(-(2 * (arrays["thickness"].astype(float) - 2.5) + 0.5 * arrays["noise"])))
        assert np.allclose(arrays["intensity"], expected, rtol=1e-6)


def test_moments_of_thickness(monkeypatch):
    many = open_dataset("morphomnist", {"renderings": 200, **SMALL})
    monkeypatch.setattr(many, "render", lambda digits, t, v: (np.zeros(len(digits)), np.zeros((*t.shape, 28, 28))))
    made = many._generate("train", many._digits["train"][0])
    assert made["thickness"].mean() == pytest.approx(2.5, abs=0.03)
    assert made["thickness"].var() == pytest.approx(0.4, abs=0.03)
    assert made["noise"].std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(made["noise"], made["thickness"])[0, 1]) < 0.04


def test_shapes_and_defaults(dataset):
    for split, size in (("train", 80), ("valid", 16), ("test", 48)):
        rows = dataset.split(split)
        assert rows.images.shape == (size, 1, 32, 32) and rows.images.dtype == torch.uint8 and len(rows) == size
        assert not rows.images[:, :, :2].any() and not rows.images[..., -2:].any()
        assert rows.images.flatten(1).amax(1).min() > 50
    assert set(dataset.graph.image.parents) == {"thickness", dataset.second, "digit"}


def test_splits_share_no_digit(morpho):
    seen = [{d.tobytes() for d in morpho._digits[split][0]} for split in SPLITS]
    assert [len(s) for s in seen] == [40, 8, 24] and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    whole = {split: len(pair[0]) for split, pair in open_dataset("morphomnist")._digits.items()}
    assert whole == {"train": 4000, "valid": 500, "test": 500}


def test_measures_what_it_rendered(dataset):
    batch = dataset.split("train").batch(range(80))
    bound = {"thickness": 0.2, "intensity": 1.0, "slant": 4.0, "width": 0.6}
    for name, value in dataset.measure(batch["image"]).items():
        assert (value - batch[name]).abs().mean() < bound[name], name


# ---------------------------------------------------------------------------------------------------- counterfactuals
def test_null_intervention_is_the_observation(dataset):
    for split in SPLITS:
        index = torch.arange(len(dataset.split(split)))
        assert equal(dataset.true_counterfactual(split, index, {}), dataset.split(split).batch(index))


def test_own_values_give_the_observation(dataset):
    index = torch.tensor([3, 0, 47, 3])
    seen = dataset.split("test").batch(index)
    for names in (("thickness",), (dataset.second,), ("thickness", dataset.second)):
        assert equal(dataset.true_counterfactual("test", index, {n: seen[n] for n in names}), seen)


def test_only_descendants_change(dataset):
    index = torch.arange(20)
    seen, second = dataset.split("test").batch(index), dataset.second
    thick = dataset.true_counterfactual("test", index, {"thickness": torch.full((20,), 4.2)})
    assert torch.equal(thick["digit"], seen["digit"]) and (thick["thickness"] == torch.tensor(4.2)).all()
    assert (thick[second] != seen[second]).all() and (thick["image"] != seen["image"]).flatten(1).any(1).all()
    value = {"intensity": 222.0, "slant": -8.0, "width": 13.0}[second]
    other = dataset.true_counterfactual("test", index, {second: torch.tensor(value)})
    assert equal(other, seen, ("thickness", "digit")) and (other[second] == value).all()
    both = dataset.true_counterfactual("test", index, {"thickness": 4.2, second: value})
    assert (both[second] == value).all() and torch.equal(both["thickness"], thick["thickness"])


def test_counterfactual_is_reversible(dataset):
    index = torch.arange(10)
    seen = dataset.split("valid").batch(index)
    dataset.true_counterfactual("valid", index, {"thickness": 5.0})
    assert equal(dataset.true_counterfactual("valid", index, {"thickness": seen["thickness"]}), seen)


def test_closed_form_of_the_counterfactual_intensity(morpho):
    index = torch.arange(48)
    seen = morpho.split("test").batch(index)
    target = torch.linspace(1.2, 4.5, 48)
    found = morpho.true_counterfactual("test", index, {"thickness": target})
    t, i = seen["thickness"].double(), seen["intensity"].double()
    expected = 64 + 191 * torch.sigmoid(torch.logit((i - 64) / 191) + 2 * (target.double() - t))
    assert torch.allclose(found["intensity"].double(), expected, atol=0.01)
    measured = morpho.measure(found["image"])
    assert (measured["thickness"] - target).abs().mean() < 0.3  # strokes far thicker than their own grow together
    assert (measured["intensity"] - found["intensity"]).abs().mean() < 1


def test_extremes_of_the_support(morpho):
    do = {"thickness": torch.tensor([0.1, 12.0, 1.0, 6.5]), "intensity": 255}
    found = morpho.true_counterfactual("test", torch.arange(4), do)
    assert torch.isfinite(found["image"]).all() and found["image"].max() <= 1
    assert morpho.schema["intensity"].unconstrain(found["intensity"]).isfinite().all()


@pytest.mark.parametrize(("do", "words"), [
    ({"digit": 3}, "do(digit)"),
    ({"thickness": -1.0}, "thickness=-1"),
    ({"intensity": 300.0}, "[64, 255]"),
    ({"thicknes": 2.0}, "'thicknes' thickness"),
    ({"thickness": torch.ones(3)}, "thickness 3 2"),
])
def test_refusals(morpho, do, words):
    with pytest.raises(SchemaError, match=naming(words)):
        morpho.true_counterfactual("test", torch.arange(2), do)


def test_row_that_does_not_exist(morpho):
    with pytest.raises(SchemaError, match=naming("48..48 test morphomnist")):
        morpho.true_counterfactual("test", torch.tensor([48]), {"thickness": 2.0})
    assert len(morpho.true_counterfactual("test", torch.tensor([]), {"thickness": 2.0})["image"]) == 0


# ---------------------------------------------------------------------------------------------------- options
def test_workers_and_cache_do_not_change_the_result(own_cache, monkeypatch):
    monkeypatch.setattr("datasets.mnist.morpho._WORTH_A_POOL", 1)
    monkeypatch.setattr("datasets.mnist.morpho._CHUNK", 8)
    options = {**SMALL, "train_digits": 20}
    one = open_dataset("morphomnist", {**options, "workers": 1}).split("train")
    again = open_dataset("morphomnist", {**options, "workers": 1}).split("train")
    shutil.rmtree(own_cache)
    two = open_dataset("morphomnist", {**options, "workers": 2}).split("train")
    for other in (again, two):
        assert torch.equal(one.images, other.images) and equal(one.attributes, other.attributes)


def test_every_option_counts(morpho):
    base = morpho.split("test")
    assert not torch.equal(open_dataset("morphomnist", {**SMALL, "seed": "1"}).split("test").attributes["thickness"],
                           base.attributes["thickness"])
    assert len(open_dataset("morphomnist", {**SMALL, "renderings": "1"}).split("test")) == 24
    exact = open_dataset("morphomnist", {**SMALL, "exact": "true"}).split("test")
    assert torch.equal(exact.attributes["thickness"], base.attributes["thickness"])
    difference = (exact.images.float() - base.images.float())[..., 2:-2, 2:-2].abs().mean()
    assert 0 < difference < 1.25


@pytest.mark.parametrize(("options", "words"), [
    ({"rendering": 3}, "'rendering' renderings"),
    ({"renderings": 0}, "renderings=0"),
    ({"train-digits": "many"}, "train_digits"),
    ({"valid_digits": 501}, "valid_digits=501 500"),
    ({"data_dir": "nowhere/at/all"}, "nowhere/at/all"),
])
def test_wrong_options(options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("morphomnist", options).split("valid")


# ---------------------------------------------------------------------------------------------------- official files
@pytest.fixture
def official_copy(shared_data, tmp_path) -> Path:
    for file in (shared_data / "morphomnist_official").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def test_official_truth(shared_data):
    options = {"data_dir": str(shared_data / "morphomnist_official"), "mnist": str(shared_data / "mnist")}
    official = open_dataset("morphomnist-official", options)
    assert [len(official.split(s)) for s in SPLITS] == [3500, 750, 750]
    assert official.has_truth(["thickness", "intensity"]) and not official.has_truth(["digit"])
    index = torch.tensor([5, 700])
    seen = official.split("valid").batch(index)
    assert equal(official.true_counterfactual("valid", index, {}), seen)
    again = official.true_counterfactual("valid", index, {"thickness": seen["thickness"]})
    assert torch.allclose(again["intensity"], seen["intensity"], atol=1e-3)
    assert (again["image"] - seen["image"]).abs().mean() * 255 < 2


def test_official_without_mnist_has_no_truth(shared_data):
    official = open_dataset("morphomnist-official", {"data_dir": shared_data / "morphomnist_official"})
    assert not official.has_truth(["thickness"])
    with pytest.raises(SchemaError, match=naming("morphomnist-official mnist")):
        official.true_counterfactual("test", torch.arange(2), {"thickness": 2.0})


def test_official_files_that_do_not_fit(official_copy):
    table = official_copy / "t10k-morpho.csv"
    lines = table.read_text().splitlines()
    for content, words in ((lines[:-3], "4997 5000"),
                           (["index,thick,intensity", *lines[1:]], "thickness thick"),
                           ([lines[0], *lines[2:], lines[1]], "0..4999"),
                           ([*lines[:-1], "4999,x,2"], "5001 thickness='x'")):
        table.write_text("\n".join(content))
        with pytest.raises(DataError, match=naming(table, words)):
            open_dataset("morphomnist-official", {"data_dir": official_copy}).split("test")
    table.unlink()
    with pytest.raises(DataError, match=naming(table)):
        open_dataset("morphomnist-official", {"data_dir": official_copy}).split("test")
    labels = official_copy / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-1]))
    with pytest.raises(DataError, match=naming(labels, "5,008 5,007")):
        open_dataset("morphomnist-official", {"data_dir": official_copy}).split("test")
    with pytest.raises(DataError, match=naming("morphomnist-official data_dir")):
        open_dataset("morphomnist-official")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("kept", ["index,", "", "anew"])
def test_official_tables_that_a_spreadsheet_sorted(official_copy, mark, kept):
    """With the index, without it, or with another: rows that are not the images' are refused, a table without an index is warned of."""
    table = official_copy / "t10k-morpho.csv"
    head, *lines = table.read_text().splitlines()
    for order in (lines, sorted(lines, key=lambda line: float(line.split(",")[1])), lines[1:] + lines[:1]):
        rows = order if kept == "index," else [line.split(",", 1)[1] for line in order]
        rows = [f"{k},{row}" for k, row in enumerate(rows)] if kept == "anew" else rows
        table.write_text(mark + "\n".join([head if kept else head.removeprefix("index,"), *rows]), encoding="utf-8")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            dataset = open_dataset("morphomnist-official", {"data_dir": official_copy})
            if order == lines:
                rows = dataset.split("test").batch(range(100))
                assert (dataset.measure(rows["image"])["thickness"] - rows["thickness"]).abs().mean() < 0.15
            else:
                with pytest.raises(DataError, match=naming(table)):
                    dataset.split("test")
        assert any(says(w.message, table, "index") for w in told) == (not kept)


def test_official_tables_of_other_encodings(official_copy):
    table = official_copy / "t10k-morpho.csv"
    text = table.read_text()
    rows = open_dataset("morphomnist-official", {"data_dir": official_copy}).split("test").attributes
    table.write_text(text, encoding="utf-16")
    assert equal(open_dataset("morphomnist-official", {"data_dir": official_copy}).split("test").attributes, rows)
    table.write_text(text.replace("index", "ïndex"), encoding="latin-1")
    with pytest.raises(DataError, match=naming(f"{table} 1 UTF-8 0xef")):
        open_dataset("morphomnist-official", {"data_dir": official_copy}).split("test")


def test_official_with_both_parts(official_copy):
    for file in list(official_copy.iterdir()):
        shutil.copyfile(file, official_copy / file.name.replace("t10k", "train"))
    official = open_dataset("morphomnist-official", {"data_dir": official_copy})
    assert [len(official.split(s)) for s in SPLITS] == [4167, 833, 5000]

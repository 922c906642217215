"""Digit sources and the cache: known answers, damaged files, and two processes at once."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from datasets import open_dataset
from datasets.files.cache import cache_path, cached
from datasets.files.idx import DataError, load_mnist, read_digits, read_idx
from datasets.schema import SchemaError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)


def idx(array: np.ndarray) -> bytes:
    kind = {"uint8": 8, "int32": 0x0C}[array.dtype.name]
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder: Path, name: str = "{}-{}-idx{}-ubyte.gz", labels: np.ndarray = LABELS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for what, rank, array in (("images", 3, IMAGES), ("labels", 1, labels)):
            raw = idx(array)
            path = folder / name.format(prefix, what, rank)
            path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return folder


# ---------------------------------------------------------------------------------------------------- IDX
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("array", [IMAGES, LABELS, np.array([[1, -2], [70000, 4]], np.int32)],
                         ids=["images", "labels", "int32"])
def test_idx_round_trip(tmp_path, array, pack):
    (tmp_path / "file").write_bytes(pack(idx(array)))
    found = read_idx(tmp_path / "file")
    assert found.dtype == array.dtype and np.array_equal(found, array)


@pytest.mark.parametrize(("content", "words"), [
    (idx(IMAGES)[:-1], "truncated"),
    (idx(IMAGES) + b"x", "too long"),
    (idx(IMAGES)[:9], "inside its header"),
    (gzip.compress(idx(IMAGES))[:-20], "damaged gzip"),
    (gzip.compress(idx(IMAGES))[:40] + b"\xff" * 400, "damaged gzip"),
    (b"<html>not found</html>", "not an IDX file"),
    (b"", "not an IDX file"),
])
def test_damaged_idx_is_named(tmp_path, content, words):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def header(*shape: int, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("head", "words"), [
    (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "says that it holds"), (header(60_000, 28, 28), "truncated"), (header(0, 28, 28), "nothing"),
    (header(5, 0, 28), "nothing"), (header(2**21, 28, 28), "truncated"), (header(*[255] * 8, kind=0x0E), "says that it holds"),
    (header(6, 2**31 - 1, 0), "nothing"),
])
def test_sizes_that_headers_promise(tmp_path, head, words, pack):
    (tmp_path / "file").write_bytes(pack(head + bytes(4704)))
    with pytest.raises(DataError, match=f"{tmp_path}/file .*{words}"):
        read_idx(tmp_path / "file")


def test_no_more_is_unpacked_than_is_due(tmp_path, monkeypatch):
    """A few kilobytes that unpack to many megabytes: the header says six images."""
    (tmp_path / "file").write_bytes(gzip.compress(idx(IMAGES)) + gzip.compress(bytes(2**20)) * 64)
    unpacked, read = [], gzip.GzipFile.read

    def counted(file, size=-1):
        unpacked.append(len(found := read(file, size)))
        return found

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DataError, match=f"{tmp_path}/file is too long: its header .6, 28, 28. needs 4,720 bytes"):
        read_idx(tmp_path / "file")
    assert sum(unpacked) == 4721


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path / "file")


# ---------------------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize("name", [f"{{}}-{{}}{dot}idx{{}}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")])
@pytest.mark.parametrize("place", [".", "MNIST/raw"])
def test_every_usual_layout(tmp_path, name, place):
    write_mnist(tmp_path / place, name)
    found = load_mnist(tmp_path)
    for split in ("train", "test"):
        assert np.array_equal(found[split][0], IMAGES) and np.array_equal(found[split][1], LABELS)
        assert found[split][1].dtype == np.int64


def test_missing_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="no folder.*train-images-idx3-ubyte.*train-images.idx3-ubyte.gz.*MNIST/raw"):
        load_mnist(tmp_path / "nowhere")


def test_labels_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="6 images"):
        read_digits(write_mnist(tmp_path / "a", labels=LABELS[:5]), "train")
    with pytest.raises(SchemaError, match="digits are 0..9"):
        read_digits(write_mnist(tmp_path / "b", labels=LABELS + 3), "train")


def stroke(level: int = 255, ground: int = 0) -> np.ndarray:
    image = np.full((28, 28), ground, np.uint8)
    image[5:23, 12:15] = level
    return image


DOT = np.zeros((28, 28), np.uint8)
DOT[9, 9] = 255


@pytest.mark.parametrize(("image", "words"), [
    (np.zeros((28, 28)), "image 3 shows no stroke"), (DOT, "image 3 shows no stroke"), (stroke(9), "image 3 shows no stroke"),
    (np.full((28, 28), 255), "image 3 is dark on light"), (stroke(0, 255), "image 3 is dark on light"),
    (stroke(60, 200), "image 3 is dark on light"),
])
@pytest.mark.parametrize("dataset", ["morphomnist", "coloredmnist", "photo-backgrounds", "transformed-mnist"])
def test_digits_without_strokes_are_named(tmp_path, monkeypatch, image, words, dataset):
    images = np.stack([stroke()] * 6)
    images[3] = image
    monkeypatch.setattr("tests.datasets.files.test_idx.IMAGES", images)
    with pytest.raises(DataError, match=f"{write_mnist(tmp_path)}/train-images-idx3-ubyte.gz: {words}.*, first of 1 such among 6"):
        open_dataset(dataset, {"data_dir": tmp_path}).split("train")


def test_digits_of_zero_and_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.datasets.files.test_idx.IMAGES", np.stack([stroke(1)] * 6))
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: its brightest pixel is 1 of 255"):
        read_digits(write_mnist(tmp_path), "train")


@pytest.mark.parametrize("dataset", ["morphomnist", "coloredmnist", "transformed-mnist"])
def test_parts_without_digits(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr("tests.datasets.files.test_idx.IMAGES", np.stack([stroke()] * 6))
    write_mnist(tmp_path)
    for what, array in (("images-idx3", IMAGES[:0]), ("labels-idx1", LABELS[:0])):
        (tmp_path / f"t10k-{what}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz holds nothing"):
        open_dataset(dataset, {"data_dir": tmp_path}).split("test")
    for name in ("t10k", "train"):  # of one image there are no three splits
        for what, array in (("images-idx3", stroke()[None]), ("labels-idx1", LABELS[:1])):
            (tmp_path / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    with pytest.raises(DataError, match=f"{dataset}: the (valid|test) split has no digits: there are too few in {tmp_path}"):
        open_dataset(dataset, {"data_dir": tmp_path}).split("valid")


def test_embedded_digits_are_shuffled_and_complete():
    found = load_mnist()
    (images, labels), (test_images, test_labels) = found["train"], found["test"]
    assert images.shape == (4500, 28, 28) and test_images.shape == (500, 28, 28) and images.dtype == np.uint8
    assert (np.bincount(np.concatenate([labels, test_labels])) == 500).all()
    assert np.bincount(test_labels, minlength=10).min() > 20 and len(set(labels[:50].tolist())) == 10
    train = {image.tobytes() for image in images}
    assert not any(image.tobytes() in train for image in test_images)


def test_real_files(shared_data):
    images, labels = read_digits(shared_data / "mnist", "t10k")
    assert images.shape == (10000, 28, 28) and labels[:5].tolist() == [7, 2, 1, 0, 4]


# ---------------------------------------------------------------------------------------------------- cache
def build() -> dict[str, np.ndarray]:
    return {"a": np.arange(200_000), "b": np.array(0.5)}


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("should have come from the cache")


def test_second_call_reads_the_first(own_cache):
    first, second = cached("x", {"n": 1}, build), cached("x", {"n": 1}, refuse)
    assert all(np.array_equal(first[k], second[k]) for k in ("a", "b"))
    with pytest.raises(AssertionError):
        cached("x", {"n": 2}, refuse)
    assert [p.name for p in own_cache.iterdir()] == [cache_path("x", {"n": 1}).name]


@pytest.mark.parametrize("damage", [
    lambda raw: raw[:1000], lambda raw: b"", lambda raw: raw[:5000] + b"\1\2\3" + raw[5003:],
], ids=["truncated", "empty", "flipped"])
def test_damaged_file_is_made_again(own_cache, damage):
    cached("x", {}, build)
    path = cache_path("x", {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        again = cached("x", {}, build)
    assert np.array_equal(again["a"], build()["a"])
    assert np.array_equal(cached("x", {}, refuse)["a"], again["a"])


@pytest.mark.parametrize("other", [
    {"a": np.zeros(200_000, int), "b": np.array(0.5)}, {"b": np.array(0.5)}, {"a": np.arange(3), "c": np.array(0.5)}, {},
], ids=["black", "lacking", "named otherwise", "nothing"])
def test_what_another_hand_put_there_is_made_again(own_cache, other):
    cached("x", {}, build)
    np.savez(cache_path("x", {}), **other)
    with pytest.warns(UserWarning, match=f"{cache_path('x', {})} .*made again"):
        assert np.array_equal(cached("x", {}, build)["a"], build()["a"])
    assert set(cached("x", {}, refuse)) == {"a", "b"}


def test_an_entry_under_the_name_of_another_is_made_again(own_cache):
    cached("x", {"n": 1}, lambda: {"a": np.zeros(3)})
    shutil.copy(cache_path("x", {"n": 1}), cache_path("x", {"n": 2}))
    with pytest.warns(UserWarning, match="made again"):
        assert cached("x", {"n": 2}, lambda: {"a": np.ones(3)})["a"].all()


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array("text"), np.arange(12).reshape(3, 4).T, np.array([True]), np.float16(2)])
def test_entries_of_any_kind_are_kept(own_cache, array):
    cached("x", {}, lambda: {"a": np.asarray(array)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(cached("x", {}, refuse)["a"], array)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of another kind")
def test_the_directory_is_its_owners_alone(own_cache, monkeypatch):
    cached("x", {}, build)
    assert own_cache.stat().st_mode & 0o777 == 0o700
    own_cache.chmod(0o777)
    with pytest.warns(UserWarning, match=f"{own_cache} could be written by others; .*0700"):
        cached("x", {"n": 1}, build)
    assert own_cache.stat().st_mode & 0o777 == 0o700
    own_cache.chmod(0o1777)  # as /tmp: many use it
    cached("x", {"n": 2}, build)
    assert own_cache.stat().st_mode & 0o7777 == 0o1777
    if os.geteuid() == 0:
        os.chown(cache_path("x", {}), 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.warns(UserWarning, match=f"{cache_path('x', {})} .*another user.*made again"):
        cached("x", {}, build)


def test_directory_that_cannot_be_written_warns_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OTHERWISE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="OTHERWISE_CACHE"):
        assert len(cached("x", {}, build)["a"]) == 200_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached("x", {}, build)


def _race(start, results) -> None:
    start.wait()
    for n in range(5):
        results.put(bool(np.array_equal(cached("x", {"n": n}, build)["a"], np.arange(200_000))))


def test_two_processes_at_once(own_cache):
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_race, args=(start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    assert all(results.get(timeout=60) for _ in range(10))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(own_cache.iterdir())) == 5, "temporary files are left"

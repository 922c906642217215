"""Digit sources and the cache: known answers, damaged files, and two processes at once."""

from __future__ import annotations

import gzip
import multiprocessing
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

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

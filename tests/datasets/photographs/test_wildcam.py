"""WildCam in the published format: cameras, the listing, what is held out, the published recipe."""

from __future__ import annotations

import shutil

import pytest

from datasets import open_dataset
from datasets.errors import UserError
from datasets.files.idx import DataError
from datasets.task import task_of
from experiments.training.plan import resolve
from tests.errors import naming
from tests.trees import change_json, wildcam


@pytest.fixture
def tree(tmp_path):
    return wildcam(tmp_path)


def opened(tree, **options):
    return open_dataset("wildcam", {"data_dir": tree, "size": 32, **options})


def test_cameras_and_categories(tree):
    dataset = opened(tree, valid=0.25)
    assert dataset.environments("train").tolist() == [0] * 12 + [1] * 12 and set(dataset.environments("test").tolist()) == {2}
    valid, test = dataset.split("valid").attributes, dataset.split("test").attributes
    assert valid["category"].bincount().tolist() == [4, 4] and valid["location"].bincount().tolist() == [4, 4]
    assert test["category"].tolist() == [0] * 4 + [1] * 3  # one is not listed
    task_of(dataset).check_environments("IRM")


def test_what_is_held_out_is_of_the_seed(tree):
    paths = [[row.image for row in opened(tree, seed=seed).rows("valid")] for seed in (0, 0, 1)]
    assert paths[0] == paths[1] != paths[2]


def test_without_listing_all_images_are_taken(tree):
    (tree / "train_test_filenames.json").unlink()
    assert len(opened(tree).split("test")) == 8


def test_cameras_are_numbers_or_text(tree):
    rows = opened(tree).rows("train")
    change_json(tree / "train_test_filenames.json", lambda listing: [e.update(location=(str, float)[k % 2](e["location"]))
                                                                     for k, e in enumerate(listing)])
    assert opened(tree).rows("train") == rows and len(rows) == 28


def test_folder_of_the_archive_is_found(tree, tmp_path):
    below = tmp_path / "data" / "wildcam_denoised"
    below.mkdir(parents=True)
    for name in ("train_43", "train_46", "test"):
        shutil.move(tree / name, below / name)
    assert len(opened(tmp_path / "data").split("test")) == 8


def test_published_recipe(tree):
    dataset = opened(tree)
    irm, erm = (resolve(name, dataset) for name in ("irm", "erm"))
    for plan in (irm, erm):
        assert plan.classifier.network == "resnet18" and plan.classifier.frozen and plan.classifier.l2 == 1e-3
        assert plan.training.steps == 121 and plan.training.learning_rate == 1e-3 and plan.training.batch_size >= 2133
    assert irm.settings.penalty == 1e4 and round(irm.settings.anneal * 121) == 40


@pytest.mark.parametrize(("change", "words"), [
    (lambda listing: listing[3].update(category="cat"), "3 'cat' coyote raccoon"),
    (lambda listing: listing[0].update(location=44), "0 '44' 43 46 130"),
    (lambda listing: listing[5].pop("filename"), "5 category location filename"),
    (lambda listing: listing[3].update(category=None), "3 'None'"),
    (lambda listing: listing[3].update(category=["coyote"]), "3 coyote"),
    (lambda listing: listing[3].update(location=None), "3 'None' 43"),
    (lambda listing: listing[3].update(location=[43]), "3 '[43]' 43"),
    (lambda listing: listing[3].update(filename=None), "3 None"),
    (lambda listing: listing[3].update(filename="./43-0-2.jpg"), "3 2 43-0-2.jpg"),
    (lambda listing: listing.append(dict(listing[2])), "39 2 43-0-2.jpg"),
    (lambda listing: listing[1].update(filename="lost.jpg"), "train lost.jpg"),
])
def test_wrong_listings(tree, change, words):
    change_json(tree / "train_test_filenames.json", change)
    with pytest.raises(DataError, match=naming(words)):
        opened(tree).split("train")


def test_wrong_trees(tree):
    (tree / "test" / "bobcat").mkdir()
    with pytest.raises(DataError, match=naming("test/bobcat coyote raccoon")):
        opened(tree).split("test")
    shutil.rmtree(tree / "train_46")
    with pytest.raises(DataError, match=naming("train_46 wildcam_denoised/train_46 test train_43 train_test_filenames.json")):
        opened(tree).split("train")
    with pytest.raises(UserError, match=naming("valid=1.0 (0, 1)")):
        opened(tree, valid="1")

"""Photo backgrounds: what is photograph and what is digit, to the pixel; bands that splits do not share; the law of the cue."""

from __future__ import annotations

import math

import pytest
import torch

from datasets import SPLITS, SchemaError, open_dataset
from datasets.mnist.photo_backgrounds import PHOTOS, photographs
from datasets.task import task_of
from tests.errors import naming

SMALL = {"train_digits": 200, "valid_digits": 60, "test_digits": 60}


@pytest.fixture(scope="module", params=[32, 64])
def dataset(request, session_cache):
    return open_dataset("photo-backgrounds", {**SMALL, "size": request.param})


def both_worlds(dataset, split: str) -> list[torch.Tensor]:
    """All rows on the first photograph, and on the second; uint8."""
    rows = torch.arange(len(dataset.split(split)))
    return [(dataset.true_counterfactual(split, rows, {"background": k})["image"] * 255).round().to(torch.uint8) for k in range(2)]


@pytest.mark.parametrize("split", SPLITS)
def test_outside_the_mask_is_the_photograph_and_inside_nothing_of_it(dataset, split):
    masks, worlds, photos = dataset.masks(split), both_worlds(dataset, split), photographs()
    assert masks.dtype == torch.bool and 0.05 < float(masks.float().mean()) < 0.5 and masks.flatten(1).any(1).all()
    same = (worlds[0] == worlds[1]).all(1)
    assert same[masks].all() and float(same[~masks].float().mean()) < 0.01
    noise, size = dataset._rows[split][2], dataset.size
    for k in range(2):
        for row in range(20):
            top, left = int(noise["top"][row, k]), int(noise["left"][row, k])
            patch = photos[k, :, top:top + size, left:left + size]
            assert torch.equal(worlds[k][row][:, ~masks[row]], patch[:, ~masks[row]])


def test_digits_are_light_with_a_dark_rim(dataset):
    masks, image = dataset.masks("train"), dataset.split("train").images
    assert (image.amax(1) == image.amin(1))[masks].all()  # grey
    inside, photo = torch.where(masks, image[:, 0], 0), ~masks
    rim = masks & (torch.nn.functional.max_pool2d(photo.float(), 3, 1, 1) > 0)  # pixels of the mask that touch the photograph
    assert (inside.flatten(1).amax(1) > 150).all() and (image[:, 0][rim] < 32).all()


def test_task_has_masks(dataset):
    task = task_of(dataset)
    task.check_masks("a test")
    assert torch.equal(task.masks("valid"), dataset.masks("valid")) and task.group_names[1] == "label=0-4, background=flower"


def test_splits_share_no_column_of_a_photograph(dataset):
    seen = [{c + k for c in dataset.columns(split).tolist() for k in range(dataset.size)} for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2]) and set.union(*seen) == set(range(640))
    for split in SPLITS:
        assert set(dataset._rows[split][2]["left"].flatten().tolist()) <= set(dataset.columns(split).tolist())
    assert photographs().shape == (2, 3, 427, 640)


@pytest.mark.parametrize(("strength", "gap"), [(0.95, 0.1), (0.7, 0.5), (0.5, 0.1), (1.0, 0.0), (0.2, 0.2)])
def test_law(strength, gap):
    dataset = open_dataset("photo-backgrounds", {"strength": str(strength), "gap": gap})
    rows = dataset.split("train").attributes
    for environment, s in enumerate((0.5 + (strength - 0.5) * (1 + gap), 0.5 + (strength - 0.5) * (1 - gap))):
        own = (rows["background"] == rows["label"])[dataset.environments("train") == environment].double()
        assert abs(float(own.mean()) - s) <= 4 * math.sqrt(s * (1 - s) / len(own))
    assert torch.equal(rows["label"], (rows["digit"] >= 5).long())
    assert dataset.graph["background"].parents == (() if strength == 0.5 else ("label",))


def test_interventions_keep_digit_and_places(dataset):
    index, seen = torch.arange(60), dataset.split("test")
    worlds, label = both_worlds(dataset, "test"), seen.attributes["label"]
    truth = dataset.true_counterfactual("test", index, {"label": 1 - label})
    assert torch.equal(truth["digit"], seen.attributes["digit"])  # the label is a name: what is drawn stays
    assert torch.equal(truth["background"], 1 - seen.attributes["background"])
    expected = torch.stack([worlds[int(k)][row] for row, k in enumerate(truth["background"])])
    assert torch.equal((truth["image"] * 255).round().to(torch.uint8), expected)


def test_shifts(dataset):
    rows = {"label": dataset.split("test").attributes["label"].repeat(40)}
    free, reversed_ = (dataset.shifts()[name](rows, torch.Generator().manual_seed(0))["background"] for name in ("independent", "reversed"))
    assert torch.equal(reversed_, 1 - rows["label"])
    for label in (0, 1):
        told = free[rows["label"] == label].double()
        assert abs(float(told.mean()) - 0.5) <= 4 * math.sqrt(0.25 / len(told))


def test_background_is_measured(dataset):
    for split in SPLITS:
        for k, world in enumerate(both_worlds(dataset, split)):
            measured = dataset.measure(world.float() / 255)["background"]
            assert float((measured == k).float().mean()) > 0.9, (split, PHOTOS[k])


@pytest.mark.parametrize(("options", "words"), [
    ({"strength": 1.1}, "strength=1.1"), ({"strength": float("nan")}, "strength=nan"),
    ({"gap": 0.2}, "gap=0.2 [0, 1] ½|·(1 + gap) ½ strength=0.95"),
    ({"gap": -0.1}, "gap=-0.1"), ({"size": 48}, "size=48 32 64"),
])
def test_senseless_options(options, words):
    with pytest.raises(SchemaError, match=naming(words)):
        open_dataset("photo-backgrounds", options)


def test_the_background_is_the_easier_cue(session_cache):
    """Two passes over tied data: on their own photograph both classes are recognised, on the other's far fewer are."""
    from experiments.networks.registry import build_network

    dataset = open_dataset("photo-backgrounds", {"train_digits": 2000, "valid_digits": 1, "test_digits": 300})
    rows, label = dataset.split("train"), dataset.split("test").attributes["label"]
    torch.manual_seed(0)
    network = build_network("smallcnn", dataset.schema.image.shape, 2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for index in torch.cat([torch.randperm(len(rows)) for _ in range(2)]).split(64):
        batch = rows.batch(index)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
    with torch.no_grad():
        network.eval()
        right = [float((network(dataset.true_counterfactual("test", torch.arange(300), {"background": background})["image"]).argmax(1)
                        == label).float().mean()) for background in (label, 1 - label)]
    assert right[0] > 0.85 and right[0] > right[1] + 0.2

"""Focus on the foreground: closed forms, torchmetrics, floors; and its columns in the table of a stress test."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import binary_average_precision

from datasets.base import CausalDataset
from datasets.schema import SchemaError, Variable
from datasets.task import task_of
from experiments.attribution.focus import MEANINGS, TITLES, chance, focus, foreground, scores, summary
from experiments.networks.small import MLP
from experiments.robustness import main
from experiments.stress import foreground as foreground_test
from experiments.stress import ood
from experiments.stress.files import save_results
from experiments.stress.options import Options
from experiments.stress.results import FIGURES, StressResults
from experiments.stress.run import AS_OBSERVED, MAJORITY, OBSERVED, Classifier, stress_test
from experiments.stress.text import as_markdown, tables
from mechanisms.runs.files import RunError

SIDE, BLOCK = 12, 4


class Blocks(CausalDataset):
    """A block, bright or dark as ``kind``, anywhere on a background that is bright or dark as ``site``."""

    label, spurious = "kind", ("site",)
    variables = (Variable("kind", "binary"), Variable("site", "binary", parents=("kind",)),
                 Variable("image", "image", parents=("kind", "site"), shape=(1, SIDE, SIDE)))
    lazy = False

    def load(self, split):
        kind, site = torch.arange(60) % 2, (torch.arange(60) // 3) % 2
        base = (0.3 + 0.4 * site)[:, None, None].expand(-1, SIDE, SIDE)
        return {"kind": kind, "site": site, "image": torch.where(self.boxes(), (0.1 + 0.8 * kind)[:, None, None], base)}

    def boxes(self):
        masks = torch.zeros(60, SIDE, SIDE, dtype=torch.bool)
        for row in range(60):
            masks[row, row % 8 : row % 8 + BLOCK, row % 5 : row % 5 + BLOCK] = True
        return masks

    def masks(self, split):
        masks = self.boxes()
        masks[7], masks[8] = False, True  # nothing, and nothing else
        return [mask.numpy() for mask in masks] if self.lazy else masks


class Lazy(Blocks):
    lazy = True


class Unknown(Blocks):
    def masks(self, split):
        return None


@pytest.fixture(scope="module")
def task():
    return task_of(Blocks())


@pytest.fixture
def some():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(6, 9, 8, generator=generator) * 3).round() / 3, torch.rand(6, 9, 8, generator=generator) < 0.3


# ---------------------------------------------------------------------------------------------------- the scores
def test_by_hand():
    """a² is 1, 4, 9, 0 and the mask holds the 4 and the 0; in order of size: out, in, out, in."""
    maps, masks = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]]), torch.tensor([[[False, True], [False, True]]])
    found = scores(maps, masks)
    assert found["focus_share"].item() == pytest.approx(4 / 14)
    assert found["focus_aupr"].item() == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found["focus_iou"].item() == pytest.approx(1 / 3)  # of {3, 2} and {2, 0}: {2}


def test_as_torchmetrics_has_it(some):
    maps, masks = some
    expected = [float(binary_average_precision((a.abs() / 9).flatten(), m.flatten().long())) for a, m in zip(maps, masks, strict=True)]
    assert scores(maps, masks)["focus_aupr"].tolist() == pytest.approx(expected, abs=1e-6)


def test_laws(some):
    """Sign and size of the whole map do not matter; a map that is the mask has all; its complement nothing but what recall costs."""
    maps, masks = some
    found = scores(maps, masks)
    for other in (-maps, maps * 1e-30, maps * 1e12):
        assert all(torch.allclose(scores(other, masks)[name], found[name]) for name in MEANINGS)
    assert all((values == 1).all() for values in scores(masks.float(), masks).values())
    opposite = scores((~masks).float(), masks)
    assert (opposite["focus_share"] == 0).all() and (opposite["focus_iou"] == 0).all()
    assert all((values >= 0).all() and (values <= 1).all() for values in found.values())
    assert found.keys() == MEANINGS.keys() == TITLES.keys()


def test_maps_that_point_nowhere_have_the_floor(some):
    maps, masks = some
    area = masks.double().mean((1, 2))
    for flat in (torch.zeros_like(maps), torch.full_like(maps, -0.7)):
        found = scores(flat, masks)
        torch.testing.assert_close(found["focus_share"], area)
        torch.testing.assert_close(found["focus_aupr"], area)
        torch.testing.assert_close(found["focus_iou"], area / (2 - area))
    assert all(torch.equal(chance(masks)[name], scores(torch.zeros_like(maps), masks)[name]) for name in MEANINGS)


def test_floors_are_what_random_maps_have():
    """But for average precision, which of few pixels in a random order is a little above the share of positives."""
    generator, mask = torch.Generator().manual_seed(0), torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[:, :, :3] = True
    random = scores(torch.rand(4000, 10, 10, generator=generator), mask.expand(4000, -1, -1))
    for name, value in chance(mask).items():
        assert random[name].mean().item() == pytest.approx(value.item(), abs=0.04 if name == "focus_aupr" else 0.005), name


def test_means_and_errors():
    values = torch.tensor([0.2, 0.4, 0.9])
    told = summary({"a": values, "b": torch.tensor([0.5])})
    assert told["a"] == (pytest.approx(0.5), pytest.approx(values.std().item() / 3**0.5)) and told["b"] == (0.5, None)


@pytest.mark.parametrize(("maps", "masks", "told"), [
    (torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool), "mask 0 is empty or full"),
    (torch.rand(2, 4, 4), torch.arange(32).view(2, 4, 4) < 16, "mask 0 is empty or full"),
    (torch.rand(2, 4, 4), torch.rand(2, 4, 5) < 0.5, r"maps \(2, 4, 4\) and masks torch.bool \(2, 4, 5\)"),
    (torch.rand(2, 4, 4), torch.rand(2, 4, 4), "give maps .* and bool masks"),
    (torch.full((2, 4, 4), torch.nan), torch.rand(2, 4, 4) < 0.5, "attributions of 2 of 2 images are not finite"),
])
def test_bad_input(maps, masks, told):
    with pytest.raises(RunError, match=told):
        scores(maps, masks)


# ---------------------------------------------------------------------------------------------------- on a data set
@pytest.mark.parametrize("kind", [Blocks, Lazy])
def test_images_whose_foreground_is_known(kind):
    index = torch.tensor([3, 7, 9, 8, 20])
    known = foreground(task_of(kind()), "test", index)
    assert known.rows.tolist() == [0, 2, 4] and known.without == 2 and torch.equal(known.masks, Blocks().boxes()[[3, 9, 20]])
    assert foreground(task_of(kind()), "test", torch.tensor([7, 8])) is None and foreground(task_of(Unknown()), "test", index) is None


class Inside(nn.Module):
    """Looks at nothing but given places, and is sure of what they show."""

    def __init__(self, places: torch.Tensor, images: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.places, self.images = nn.Parameter(torch.ones(1)), places, images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Each image is recognised by its pixels where masks do not reach with their rectangles, which here are all outside."""
        own = (images[:, None] - self.images[None]).abs().flatten(2).isclose(torch.zeros(())).sum(2).argmax(1)
        where = self.places[own][:, None]
        there = 20 * self.weight * ((images - 0.5) * where).sum((1, 2, 3)) / where.sum((1, 2, 3))
        return torch.stack([-there, there], 1)


@pytest.fixture(scope="module")
def stressed(task):
    rows = task.dataset.split("test").batch(slice(None))
    boxes = Blocks().boxes()
    people = {"right": Inside(boxes, rows["image"]), "wrong": Inside(~boxes, rows["image"])}
    classifiers = [Classifier(name, None, network, network) for name, network in people.items()]
    blind = Classifier("blind", None, people["right"], None)
    return stress_test(task, [*classifiers, blind], None, "test", 60, focus="saliency", ood="mean")


def test_who_looks_where(task, stressed):
    values = {p.algorithm: p.measured.values for p in stressed.points if p.source == OBSERVED}
    assert values["right"]["focus_share"] == 1 and values["right"]["focus_aupr"] == 1 and values["right"]["focus_iou"] == 1
    assert values["wrong"]["focus_share"] == 0 and values["wrong"]["focus_iou"] == 0
    assert values["right"]["ood_auroc"] == 1 and values["right"]["ood_fpr95"] == 0  # grey is where it knows nothing
    assert values["wrong"]["ood_auroc"] == 0.5 and values["wrong"]["ood_fpr95"] == 1  # it does not miss the foreground
    assert "focus_share" not in values["blind"] and values["blind"]["ood_auroc"] == 1
    area = BLOCK**2 / SIDE**2
    assert values[MAJORITY]["focus_share"] == pytest.approx(area) and values[MAJORITY]["focus_iou"] == pytest.approx(area / (2 - area))
    assert values[MAJORITY]["ood_auroc"] == values[MAJORITY]["ood_aupr"] == 0.5 and values[MAJORITY]["ood_fpr95"] == 1


def test_columns_of_the_table(stressed, tmp_path):
    report = StressResults(stressed, dict.fromkeys(("right", "wrong", "blind"), "as given"))
    (_, header, lines), = [made for made in tables(report) if made[0] == "Foreground, images as observed"]
    assert header[1:] == [*TITLES.values(), *ood.TITLES.values()]
    cells = {line[0]: line[1:] for line in lines}
    assert cells["wrong"][0] == "0.0" and cells["blind"][:3] == ["–"] * 3 and cells["*constant map (chance)*"][0] == "11.1"
    text = as_markdown(report)
    assert "The foreground of 58 images is known (2 others have none, or nothing else); it is 11.1 % of their area." in text
    assert "Focus: saliency of each image's own class, on 58 images, which add a standard error of up to 0.0 points" in text
    assert "Maps of experiments.explain are of the predicted class." in text
    assert "No focus of blind: no network to look into." in text and "replaced (mean)" in text
    save_results(report, tmp_path)
    every = json.loads((tmp_path / "robustness.json").read_text())["rows"]
    rows = {(row["algorithm"], row["metric"]): row for row in every if row["stress"] == AS_OBSERVED}
    assert rows["right", "focus_share"]["mean"] == 1 and rows["right", "ood_fpr95"]["better"] == "lower"
    assert {metric for _, metric in rows} <= FIGURES.keys()


class Full(Blocks):
    def masks(self, split):
        return torch.ones(60, SIDE, SIDE, dtype=torch.bool)


class FullOneByOne(Blocks):
    def masks(self, split):
        return [np.ones((SIDE, SIDE), bool)] * 60


class Partial(Unknown):
    def masks_missing(self, split):
        return f"3 of 60 {split} images have no mask"


@pytest.mark.parametrize("wrong", [np.ones((3, 3), bool), np.ones((SIDE, SIDE), np.uint8), None])
def test_a_later_mask_of_another_kind_is_named(wrong):
    class Wrong(Blocks):
        def masks(self, split):
            return [wrong if row == 30 else mask.numpy() for row, mask in enumerate(self.boxes())]

    masks = task_of(Wrong()).masks("test")
    assert masks[29].shape == (SIDE, SIDE) and len(masks) == 60
    with pytest.raises(SchemaError, match=r"row 30 of masks\('test'\) of Wrong"):
        masks[30]


@pytest.mark.parametrize(("kind", "why"), [
    (Full, "whole image"), (FullOneByOne, "whole image"), (Partial, "3 of 60 test images have no mask")])
@pytest.mark.filterwarnings("ignore:masks.*whole image")
def test_a_table_of_foregrounds_is_not_left_out_without_a_word(kind, why):
    plain = Classifier("plain", 0, lambda images: torch.zeros(len(images), 2), MLP((1, SIDE, SIDE), 2, 4))
    report = StressResults(done := stress_test(task_of(kind()), [plain], None, "test", 20, focus="saliency", ood="mean"), {})
    assert not report.foreground() and why in done.foreground.notes[0] and done.foreground.notes[0] in as_markdown(report)
    assert stress_test(task_of(kind()), [plain], None, "test", 20).foreground is None  # nothing was asked


def test_nothing_is_asked_where_nothing_is_known(task):
    plain = Classifier("plain", 0, lambda images: torch.zeros(len(images), 2), MLP((1, SIDE, SIDE), 2, 4))
    done = stress_test(task_of(Unknown()), [plain], None, "test", 20, focus="saliency", ood="mean")
    assert done.foreground is None and not StressResults(done, {}).foreground()
    assert stress_test(task, [plain], None, "test", 20).foreground is None
    only = stress_test(task, [plain], None, "test", 20, focus="deeplift")
    assert [c.title for c in StressResults(only, {}).foreground()] == list(TITLES.values()) and "DeepLift" in only.foreground.notes[1]


def test_images_are_read_some_at_a_time_and_of_all_classes(task, monkeypatch):
    """Of rows that are sorted by class, focus looks at some of either; images without foreground are answered part by part."""
    order = task.dataset.split("test").attributes["kind"].sort(stable=True).indices
    seen, labels = [], []

    class Sorted(Blocks):
        def load(self, split):
            return {name: values[order] for name, values in super().load(split).items()}

        def boxes(self):
            return super().boxes()[order]

    network = MLP((1, SIDE, SIDE), 2, 4).eval()
    plain = Classifier("plain", 0, lambda images: seen.append(len(images)) or network(images), network)
    monkeypatch.setattr(foreground_test, "images_for", lambda method, count: 12)
    monkeypatch.setattr(foreground_test, "focus", lambda network, images, own, masks, method: labels.append(own) or chance(masks))
    whole = stress_test(task_of(Sorted()), [plain], None, "test", 60, focus="saliency", ood="mean").points[0].measured.values
    monkeypatch.setattr(foreground_test, "_AT_ONCE", 20)
    seen.clear()
    parts = stress_test(task_of(Sorted()), [plain], None, "test", 60, focus="saliency", ood="mean").points[0].measured.values
    assert whole == pytest.approx(parts) and seen == [60, 20, 20, 20, 20, 18, 18]
    assert all(len(own) == 12 and set(own.tolist()) == {0, 1} for own in labels)


def test_networks_without_the_layer_are_left_out(task):
    network = MLP((1, SIDE, SIDE), 2, 4).eval()
    done = stress_test(task, [Classifier("mlp", 0, network, network)], None, "test", 20, focus="xgradcam", ood="none")
    assert done.foreground.notes[-1] == "No focus of mlp: no layer of maps to look into." and done.foreground.values == ({},)


def test_focus_of_a_network(task):
    rows, masks = task.dataset.split("test").batch([0, 1, 2]), Blocks().boxes()[:3]
    torch.manual_seed(0)  # of four units, none may be alive
    network = MLP((1, SIDE, SIDE), 2, 32)
    gradients = []
    for image, label in zip(rows["image"], rows["kind"], strict=True):
        one = image[None].clone().requires_grad_()
        network.eval()(one)[0, label].backward(inputs=one)
        gradients.append(one.grad[0].square().sum(0))
    share = torch.stack([(g * m).sum() / g.sum() for g, m in zip(gradients, masks, strict=True)])
    torch.testing.assert_close(focus(network, rows["image"], rows["kind"], masks)["focus_share"], share.double(), rtol=1e-4, atol=1e-6)


FILE = """
    import torch
    from tests.experiments.attribution.test_focus import Blocks

    class Mine(Blocks):
        pass
"""
NET = """
    import torch

    def build(shape, classes):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], 1))
"""


def test_command(tmp_path, capsys):
    for name, text in (("scm.py", FILE), ("mine.py", NET)):
        (tmp_path / name).write_text(textwrap.dedent(text))
    given = Options(classifier=(f"{tmp_path / 'mine.py'}:build",), count=30, out=tmp_path / "out", device="cpu")
    given = replace(given, data=replace(given.data, dataset=str(tmp_path / "scm.py")))
    main(given)
    told = capsys.readouterr().out
    assert "### Foreground, images as observed" in told and "| focus: share inside |" in told
    main(replace(given, focus="none", ood="none"))
    assert "oreground" not in capsys.readouterr().out

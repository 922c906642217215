"""A newcomer's way: the one file that the README shows, through every command, to a counterfactual."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datasets import CausalDataset, open_dataset

FILE = Path(__file__).resolve().parents[1] / "docs" / "my_scm.py"
DATA = ["--dataset", str(FILE), "--option", "size=300"]
SMALL = ["--widths", "8:16,4:16,1:16", "--z-dim", "4", "--embedding", "16"]


@pytest.fixture(scope="module")
def shapes() -> CausalDataset:
    return open_dataset(str(FILE), {"size": "300"})


def python_m(monkeypatch: pytest.MonkeyPatch, module: str, *arguments: str) -> None:
    """What ``python -m module arguments`` does."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, module, raising=False)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_file_is_short_enough_to_be_shown():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 120


def test_readme_shows_this_very_file():
    assert FILE.read_text(encoding="utf-8") in (FILE.parent.parent / "README.md").read_text(encoding="utf-8")


def test_splits_differ_and_repeat(shapes):
    train, test, again = shapes.split("train"), shapes.split("test"), open_dataset(str(FILE), {"size": "300"}).split("train")
    assert torch.equal(train.images, again.images) and not torch.equal(train.images, test.images)
    assert train.images.shape == (300, 1, 16, 16) and train.images.amax((1, 2, 3)).min() > 0


def observed(shapes: CausalDataset) -> tuple[Tensor, dict[str, Tensor]]:
    index = torch.arange(20)
    return index, shapes.split("test").batch(index)


def test_truth_without_intervention_is_the_observation(shapes):
    index, batch = observed(shapes)
    truth = shapes.true_counterfactual("test", index, {})
    assert all(torch.equal(truth[name], batch[name]) for name in ("radius", "brightness", "shape"))
    assert (truth["image"] - batch["image"]).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("do, changed", [("radius", {"radius", "brightness"}), ("brightness", {"brightness"}), ("shape", {"shape"})])
def test_truth_changes_descendants_only(shapes, do, changed):
    index, batch = observed(shapes)
    values = {"radius": torch.full((20,), 3.5), "brightness": torch.full((20,), 0.3), "shape": 1 - batch["shape"]}
    truth = shapes.true_counterfactual("test", index, {do: values[do]})
    assert torch.equal(truth[do], values[do])
    assert {name for name in ("radius", "brightness", "shape") if not torch.equal(truth[name], batch[name])} == changed
    assert ((truth["image"] - batch["image"]).abs().flatten(1).amax(1) > 0.02).sum() >= 17  # a few were like that anyway
    assert shapes.has_truth([do]) and not shapes.has_truth([])


def test_attributes_can_be_measured(shapes):
    _, batch = observed(shapes)
    measured = shapes.measure(batch["image"])
    assert torch.equal(measured["shape"], batch["shape"])
    assert (measured["radius"] - batch["radius"]).abs().max() < 0.15
    assert (measured["brightness"] - batch["brightness"]).abs().max() < 0.01


def test_from_one_file_to_counterfactuals(shapes, tmp_path, monkeypatch, capsys):
    run = ["--run", str(tmp_path / "run")]
    python_m(monkeypatch, "pgm.train", *DATA, *run, "--steps", "150", "--device", "cpu")
    python_m(monkeypatch, "mechanisms.train", *DATA, *run, "--steps", "150", "--device", "cpu", "--precision", "fp32", *SMALL)

    from dscm import DSCM

    index, batch = observed(shapes)
    do = {"brightness": torch.full((20,), 0.9)}
    answer = DSCM.load(tmp_path / "run").counterfactual(batch, do)
    truth = shapes.true_counterfactual("test", index, do)["image"]
    error, copying = ((image - truth).abs().mean().item() for image in (answer.image, batch["image"]))
    assert error < 0.95 * copying  # after seconds of training, already better than doing nothing
    assert torch.equal(answer["radius"], batch["radius"]) and torch.equal(answer["shape"], batch["shape"])
    thicker = DSCM.load(tmp_path / "run").counterfactual(batch, {"radius": lambda r: r + 1})
    assert (thicker["brightness"] > batch["brightness"]).float().mean() > 0.9

    if find_spec("dscm.counterfactual") is None:
        pytest.skip("dscm.counterfactual is not written yet")
    grid = tmp_path / "grid.png"
    capsys.readouterr()
    python_m(monkeypatch, "dscm.counterfactual", *run, "--do", "radius=2,4", "--do", "shape=square", "--count", "4", "--out", str(grid))
    assert grid.stat().st_size > 1000 and "Shapes" in capsys.readouterr().out

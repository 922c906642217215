"""Studies: a share of the training rows, and boxes with moved edges instead of masks; never mixed up with other trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets import open_dataset
from datasets.files.images import Kept, kept
from datasets.task import task_of
from experiments.train import main
from experiments.training.options import Options, TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.study import NoisyBoxes, Study, kept_rows
from experiments.training.trainer import Trainer
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, load
from mechanisms.training.config import RunOptions
from tests.trees import TREES

DIGITS = {"train_digits": 80, "valid_digits": 20, "test_digits": 20}
DATA = ["--dataset", "photo-backgrounds", *(part for key, value in DIGITS.items() for part in ("--option", f"{key}={value}"))]


def rows(**study: float) -> Rows:
    return Rows(task_of(open_dataset("photo-backgrounds", DIGITS)), study=Study(**study))


def trainer(of: Rows, run: Path, name: str, *settings: str) -> Trainer:
    dataset = of.task.dataset
    flags = TrainingFlags(steps=2, batch_size=16, device="cpu", hidden=8)
    return Trainer(of, resolve(name, dataset, flags, settings), RunOptions(run), lambda other: resolve(other, dataset, flags, settings))


# ---------------------------------------------------------------------------------------------------- rows
def test_a_share_is_of_its_size_and_shares_are_nested():
    found = [set(kept_rows(1000, fraction).tolist()) for fraction in (0.1, 0.35, 1.0)]
    assert [len(f) for f in found] == [100, 350, 1000] and found[0] < found[1] < found[2]
    assert torch.equal(kept_rows(1000, 0.1), kept_rows(1000, 0.1)) and len(kept_rows(5, 0.001)) == 1
    assert torch.equal(kept_rows(50, 0.5).sort().values, kept_rows(50, 0.5))
    assert abs(float(kept_rows(1000, 0.35).float().mean()) - 500) < 4 * 1000 / (12 * 350) ** 0.5  # from all over the split


def test_training_gets_that_share_with_all_its_columns():
    part, whole = rows(data_fraction=0.25), rows()
    images, index = whole.train.images, part.kept
    assert len(part.train) == 20 and torch.equal(part.train.attributes["row"], index) and whole.kept is None
    assert torch.equal(part.train.images, images[index])
    for name, values in part.train.attributes.items():
        assert torch.equal(values, whole.train.attributes[name][index]), name
    assert len(part.selection(100)) == len(whole.selection(100))


def test_masks_and_counterfactuals_stay_with_their_rows(tmp_path):
    dataset = open_dataset("photo-backgrounds", DIGITS)
    part = Rows(task_of(dataset), lambda: torch.arange(80, dtype=torch.uint8).view(80, 1, 1, 1, 1).expand(80, 1, 3, 32, 32), "themselves",
                Study(data_fraction=0.25))
    train = trainer(part, tmp_path, "cf-f").train
    assert torch.equal(train.attributes["mask"], dataset.masks("train")[part.kept])
    train = trainer(part, tmp_path, "cf-augmentation").train
    assert torch.equal(train.attributes["counterfactual"][:, 0, 0, 0, 0].long(), part.kept)


def test_images_that_are_not_in_memory(tmp_path):
    dataset = open_dataset("cameratraps", {"data_dir": TREES["cameratraps"](tmp_path), "size": 32})
    part = Rows(task_of(dataset), study=Study(data_fraction=0.75, box_noise=0.2))
    train, row = trainer(part, tmp_path, "cf-f").train, int(part.kept[-1])
    assert isinstance(train.images, Kept) and len(train) == 3
    batch = train.batch([2])
    assert torch.equal(batch["image"][0], torch.as_tensor(dataset.split("train").images[row]) / 255)
    assert torch.equal(batch["mask"][0], NoisyBoxes(dataset.masks("train"), 0.2)[row])
    assert len(kept(dataset.masks("train"), torch.tensor([3, 1]))) == 2


def test_a_share_of_one_class_is_refused():
    with pytest.raises(RunError, match="--data-fraction 0.01 leaves 1 of 80 training rows, all of one class; take more of them"):
        rows(data_fraction=0.01).train  # noqa: B018


# ---------------------------------------------------------------------------------------------------- boxes
def mask_of(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = (40, 60)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def edges(box: torch.Tensor) -> list[int]:
    return [edge for axis in (1, 0) for line in [box.any(axis).nonzero().flatten()] for edge in (int(line[0]), int(line[-1]) + 1)]


def test_without_noise_it_is_the_bounding_box():
    mask = mask_of(10, 20, 15, 45)
    mask[12:18, 20:40] = False
    mask[10, 15:30] = False
    assert torch.equal(NoisyBoxes(mask[None], 0.0)[0], mask_of(10, 20, 15, 45))


def test_edges_move_by_up_to_the_share_of_their_sides():
    masks = mask_of(10, 20, 15, 45).expand(400, -1, -1)
    boxes = NoisyBoxes(masks, 0.2)
    moved = torch.tensor([edges(boxes[k]) for k in range(400)]) - torch.tensor([10, 20, 15, 45])
    assert moved.abs().amax(0).tolist() == [2, 2, 6, 6] and (moved.amin(0) == -moved.amax(0)).all()
    assert moved.double().mean(0).abs().max() < 4 * 6 / (3 * 400) ** 0.5
    assert abs(float(torch.corrcoef(moved.double().T)[2, 3])) < 0.2  # independently
    assert all(torch.equal(boxes[k], mask_of(*edges(boxes[k]))) for k in range(20))  # a box, without holes
    again = NoisyBoxes(masks[:50], 0.2)
    assert torch.equal(again[7], NoisyBoxes(masks[:50], 0.2)[7]) and not torch.equal(again[7], again[8])


@pytest.mark.parametrize("noise", [0.5, 1.0])
@pytest.mark.parametrize("place", [(0, 10, 0, 10), (39, 40, 59, 60), (1, 40, 0, 60), (20, 21, 3, 5)])
def test_boxes_stay_in_the_image_and_leave_background(noise, place):
    boxes = NoisyBoxes(mask_of(*place).expand(100, -1, -1), noise)
    for k in range(100):
        assert boxes[k].any() and not boxes[k].all() and boxes[k].shape == (40, 60)


def test_empty_masks_stay_empty():
    boxes = NoisyBoxes(torch.stack([torch.zeros(8, 9, dtype=torch.bool), mask_of(2, 5, 3, 7, (8, 9))]), 0.2)
    assert boxes[0].dtype == torch.bool and boxes[0].shape == (8, 9) and not boxes[0].any() and boxes[1].any()


def test_noise_changes_masks_of_algorithms_that_need_them(tmp_path):
    noisy, plain = rows(box_noise=0.2), rows()
    boxes, masks = (trainer(of, tmp_path, "cf-f").train.attributes["mask"] for of in (noisy, plain))
    assert boxes.dtype == torch.bool and boxes.shape == masks.shape and not torch.equal(boxes, masks)
    assert torch.equal(boxes[3], NoisyBoxes(masks, 0.2)[3])
    assert "mask" not in trainer(noisy, tmp_path, "erm").train.attributes


# ---------------------------------------------------------------------------------------------------- records and flags
def test_description_tells_studies_apart(tmp_path):
    told = {}
    for label, study in {"plain": {}, "part": {"data_fraction": 0.5}, "noisy": {"box_noise": 0.0}}.items():
        for name in ("erm", "cf-f"):
            one = trainer(rows(**study), tmp_path, name)
            told[label, name] = one.describe(one.build())
    assert told["part", "erm"]["data_fraction"] == 0.5 and "data_fraction" not in told["plain", "erm"]
    assert told["noisy", "cf-f"]["box_noise"] == 0.0 and told["noisy", "erm"] == told["plain", "erm"]  # which looks at no masks


def test_from_the_command_line(tmp_path, capsys):
    asked = [*DATA, "--run", str(tmp_path / "run"), "--algorithm", "cf-f", "--seeds", "1", "--steps", "2", "--batch-size", "16", "--device",
             "cpu", "--hidden", "8", "--data-fraction", "0.5"]
    run_command(Options, main, [*asked, "--box-noise", "0.2"])
    state = load(tmp_path / "run" / "classifiers" / "cf-f" / "seed-0" / "mechanism.pt", "classifier")
    assert (state["data_fraction"], state["box_noise"]) == (0.5, 0.2)
    assert "data-fraction 0.5 (flag), box-noise 0.2 (flag)" in capsys.readouterr().out
    table = (tmp_path / "run" / "classifiers" / "results.tsv").read_text().splitlines()
    row = dict(zip(table[0].split("\t"), table[1].split("\t"), strict=True))
    assert (row["data_fraction"], row["box_noise"]) == ("0.5", "0.2")
    for other in ([*asked, "--box-noise", "0.1"], asked, [*asked[:-2], "--box-noise", "0.2"]):
        with pytest.raises(SystemExit):
            run_command(Options, main, other)
        assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "words"), [
    (["--data-fraction", "0"], "--data-fraction 0.0 must lie in"), (["--data-fraction", "1.5"], "--data-fraction 1.5"),
    (["--data-fraction", "nan"], "--data-fraction nan"), (["--box-noise", "-0.1"], "--box-noise -0.1 must lie in"),
    (["--box-noise", "2"], "--box-noise 2.0"),
])
def test_senseless_flags(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command(Options, main, [*DATA, "--run", str(tmp_path), *flags])
    assert words in capsys.readouterr().err

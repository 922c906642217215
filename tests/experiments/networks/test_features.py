"""Cached features of frozen bodies: every algorithm that reads them, the trainer, the command, and classifiers on images."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import models

from datasets.base import Split, with_columns
from datasets.errors import UserError
from datasets.files.images import ImageFiles, kept
from datasets.registry import open_dataset
from datasets.task import Sizes, task_of
from experiments.algorithms.registry import ALGORITHMS
from experiments.networks import features
from experiments.networks.features import extract, images_fingerprint, stored, with_features
from experiments.networks.registry import build_network
from experiments.train import main
from experiments.training.options import Options, TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.run import rows_for, train_classifiers
from experiments.training.stacked import can_stack, learn_stacked, pays
from experiments.training.store import load_trained, results
from experiments.training.trainer import Trainer
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, load
from mechanisms.training.config import RunOptions
from mechanisms.training.noise import Noise

TOY = '''
from dataclasses import dataclass

import torch

from datasets import CausalDataset, Variable


@dataclass(eq=False)
class Toy(CausalDataset):
    """Bright or dark, with a red edge or not; two environments."""

    label = "bright"
    spurious = ("edge",)
    true_images_under = ("edge",)
    variables = (Variable("bright", "binary", classes=("no", "yes")), Variable("edge", "binary", ("bright",), classes=("no", "yes")),
                 Variable("image", "image", ("bright", "edge"), shape=(3, 32, 32)))
    recipes = {"*": {"steps": 6, "batch_size": 64, "validations": 2}}

    size: int = 48
    lazy: bool = False

    def environments(self, split):
        return torch.arange(self.size) % 2

    def load(self, split):
        found = self.world(split, {})
        return {**found, "image": Lazy(found["image"])} if self.lazy else found

    def true_counterfactual(self, split, index, do):
        return {name: value[index] for name, value in self.world(split, do).items()}

    def world(self, split, do):
        g = torch.Generator().manual_seed(len(split))
        bright, image = torch.arange(self.size) % 3 // 2, 0.4 * torch.rand(self.size, 3, 32, 32, generator=g)
        edge = torch.where(torch.rand(self.size, generator=g) < 0.7, bright, 1 - bright)
        edge = do["edge"].expand(self.size) if "edge" in do else edge
        image = image + 0.4 * bright[:, None, None, None]
        image[:, 0, :4] += 0.2 * edge[:, None, None]
        return {"bright": bright, "edge": edge, "image": image}


class Lazy:
    def __init__(self, images):
        self.images = (images * 255).round().to(torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]
'''
ROOT = Path(__file__).resolve().parents[3]
CPU = ["--device", "cpu", "--precision", "fp32"]
FLAGS = TrainingFlags(network="smallcnn", hidden=16, frozen=True, device="cpu", precision="fp32")
BACKBONE = "shufflenet_v2_x0_5"  # the smallest
READERS = [name for name, kind in ALGORITHMS.items() if kind.reads_features]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(models.get_model(BACKBONE).state_dict(), path)
    return path


def trainer(toy: str, run: Path, name: str = "erm", seed: int = 0, rows: Rows | None = None, **flags: Any) -> Trainer:
    dataset = open_dataset(toy)
    asked = replace(FLAGS, **flags)
    return Trainer(rows or Rows(task_of(dataset)), resolve(name, dataset, asked, seed=seed), RunOptions(run),
                   lambda other: resolve(other, dataset, asked, seed=seed))


def frozen(seed: int = 0):
    torch.manual_seed(seed)
    return build_network("smallcnn", (3, 32, 32), 2, 16).freeze()


def count_extractions(monkeypatch) -> list[str]:
    made: list[str] = []
    monkeypatch.setattr(features, "extract", lambda network, split: made.append(split.name) or extract(network, split))
    return made


# ---------------------------------------------------------------------------------------------------- laws
def test_who_reads_features():
    assert {"erm", "reweighting", "groupdro", "irm", "vrex", "fishr", "jtt", "dfr"} <= set(READERS) and "coral" not in READERS
    assert not {"masktune", "mixup", "lisa", "cf-augmentation", "cf-consistency"} & set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_an_update_on_features_is_the_update_on_images(name):
    """The same loss, the same gradient of the head, none of the body."""
    found = []
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    label = torch.arange(24) % 2
    group = 2 * label + torch.arange(24) % 3 // 2
    rows = {"label": label, "environment": torch.arange(24) // 2 % 2, "group": group, "row": torch.arange(24)}
    for column in ("image", "features"):
        model = ALGORITHMS[name](frozen(), Sizes(2, 2, 4), None, 0.01).train()
        seen = {"image": images} if column == "image" else {"image": images[:, 0, 0, :0], "features": model.network.features(images)}
        loss = model({**rows, **seen}, Noise(0), 1.0)["loss"].mean()
        loss.backward()
        assert {n for n, p in model.network.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
        found.append((loss.detach(), model.network.head.weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_l2_is_of_the_head_alone():
    model = ALGORITHMS["erm"](frozen(), Sizes(2), None, 0.5)
    with pytest.raises(UserError, match="coral aligns .*--frozen holds the body fixed"):
        ALGORITHMS["coral"](frozen(), Sizes(2, 2))
    expected = 0.5 * sum(float(p.detach().square().sum()) for p in model.network.head.parameters())
    assert model.penalty_of_weights().item() == pytest.approx(expected)


def test_features_are_those_of_images_one_by_one():
    images = (255 * torch.rand(7, 3, 32, 32)).to(torch.uint8)
    split, network = Split("train", images, {"row": torch.arange(7)}), frozen().train()
    made = with_features(network, split, torch.device("cpu"))
    assert made.images.shape == (7, 0) and made.attributes["features"].dtype == torch.float32 and network.training
    for row in range(7):
        torch.testing.assert_close(made.attributes["features"][row : row + 1], network.features(images[row : row + 1].float() / 255))


# ---------------------------------------------------------------------------------------------------- the cache
def test_features_are_computed_once_and_found_by_body_and_images(own_cache, monkeypatch):
    made, cpu = count_extractions(monkeypatch), torch.device("cpu")
    images = (255 * torch.rand(5, 3, 32, 32)).to(torch.uint8)
    split = Split("train", images, {"row": torch.arange(5)})
    first = stored(frozen(), split, cpu)
    assert torch.equal(stored(frozen(), split, cpu), first) and len(made) == 1
    with torch.no_grad():
        other_head = frozen()
        other_head.head.weight.add_(1)
    assert torch.equal(stored(other_head, split, cpu), first) and len(made) == 1
    assert not torch.equal(stored(frozen(1), split, cpu), first) and len(made) == 2
    changed = images.clone()
    changed[4, 2, 31, 31] ^= 1
    stored(frozen(), Split("train", changed, split.attributes), cpu)
    stored(frozen(), Split("valid", images, split.attributes), cpu)
    assert len(made) == 4 and len(list(own_cache.glob("features-*.npz"))) == 4


def test_a_damaged_cache_is_made_again(own_cache, monkeypatch):
    made, split = count_extractions(monkeypatch), Split("train", torch.zeros(3, 3, 32, 32, dtype=torch.uint8), {})
    first = stored(frozen(), split, torch.device("cpu"))
    (path,) = own_cache.glob("features-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(stored(frozen(), split, torch.device("cpu")), first)
    assert len(made) == 2


def test_lazy_images_are_told_apart_without_reading_all(toy):
    lazy = open_dataset(toy, {"lazy": "true"}).split("train")
    assert not lazy.in_memory and images_fingerprint(lazy) != images_fingerprint(open_dataset(toy).split("train"))
    assert images_fingerprint(lazy) == images_fingerprint(open_dataset(toy, {"lazy": "true"}).split("train"))
    assert images_fingerprint(lazy) != images_fingerprint(with_columns(lazy, bright=1 - lazy.attributes["bright"]))
    network = frozen()
    torch.testing.assert_close(extract(network, lazy), extract(network, open_dataset(toy).split("train")))


def test_files_that_change_are_noticed_though_they_are_not_read(tmp_path):
    for k in range(200):
        Image.new("L", (16, 16), k).save(tmp_path / f"{k:03d}.png")
    paths, every = sorted(tmp_path.glob("*.png")), torch.arange(200)

    def found(index=every, crop=1.0):
        return images_fingerprint(Split("train", kept(ImageFiles(paths, (1, 16, 16), crop), index), {}))

    assert found() == found()
    before, sampled = found(), torch.linspace(0, 199, 64).long().tolist()
    Image.new("L", (16, 16), 255).save(paths[next(k for k in range(200) if k not in sampled)])
    assert found() != before
    swapped = every.clone()
    rest = [k for k in range(200) if k not in sampled][:2]
    swapped[rest] = swapped[rest[::-1]]
    assert len({found(), found(swapped), found(crop=0.875)}) == 3


def test_features_of_a_split_that_is_gone_are_not_another_ones(toy, own_cache, monkeypatch):
    monkeypatch.setattr("experiments.training.rows.with_features", lambda network, split, device: split.name)
    rows = Rows(task_of(open_dataset(toy)))
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert [rows.featured(Split(str(k), images, {}), "body", frozen, "cpu") for k in range(20)] == [str(k) for k in range(20)]


# ---------------------------------------------------------------------------------------------------- the trainer
@pytest.mark.parametrize("network, hidden", [("smallcnn", 16), (BACKBONE, None)])
def test_the_saved_classifier_answers_on_images_as_its_head_did_on_features(toy, tmp_path, own_cache, weights, network, hidden):
    here = trainer(toy, tmp_path, network=network, hidden=hidden, weights=str(weights) if network == BACKBONE else None)
    model = here.learn()
    assert here.train.images.shape == (48, 0) and here.train.attributes["features"].shape == (48, model.network.head.in_features)
    trained = load_trained(tmp_path, "erm", 0)
    images = here.task.split("test").batch(slice(None))["image"]
    logits = trained.predict(here.rows.train.batch(slice(None))["image"])
    torch.testing.assert_close(logits, model.network.logits(here.train.attributes["features"]).detach(), rtol=1e-4, atol=1e-5)
    assert trained.network.frozen and trained.predict(images).shape == (48, 2)
    assert trained.network.body_fingerprint() == here.network().body_fingerprint()
    assert not torch.equal(trained.network.head.weight, here.network().head.weight)
    state = load(here.folder / "mechanism.pt", "classifier")
    assert state["frozen"] and ("pretrained" in state) == (network == BACKBONE)


def test_a_frozen_body_is_written_once(toy, tmp_path, own_cache, weights):
    """Though the file has the weights of three selection rules."""
    here = trainer(toy, tmp_path, network=BACKBONE, hidden=None, weights=str(weights))
    here.learn()
    body = sum(p.numel() * p.element_size() for p in here.network().state_dict().values())
    for name in ("mechanism.pt", "checkpoint.pt"):
        assert body < (here.folder / name).stat().st_size < 1.5 * body


def test_seeds_and_algorithms_share_features_of_one_body(toy, tmp_path, own_cache, weights, monkeypatch):
    made = count_extractions(monkeypatch)
    flags, data = replace(FLAGS, network=BACKBONE, hidden=None, weights=str(weights)), replace(Options().data, dataset=toy)

    def train(run: Path, seed: int, *names: str) -> list[dict[str, Any]]:
        return train_classifiers(rows_for(open_dataset(toy)), names, [seed], flags, ["dfr.samplings=2"], RunOptions(run), data)

    rows = train(tmp_path, 0, "erm", "irm", "dfr", "jtt")
    assert len(rows) == 4 and made == ["train", "valid"]
    train(tmp_path / "again", 1, "erm")
    assert made == ["train", "valid"]


def test_without_weights_each_seed_has_its_own_body(toy, tmp_path, own_cache, monkeypatch, capsys):
    made = count_extractions(monkeypatch)
    run_command(Options, main, ["--dataset", toy, "--run", str(tmp_path), *CPU, "--network", "small", "--frozen", "--seeds", "2"])
    assert made == ["train", "valid"] * 2
    assert capsys.readouterr().err.count("warning: --frozen with --weights none") == 1


@pytest.mark.parametrize("name", ["masktune", "mixup", "cf-consistency"])
def test_those_that_need_images_are_trained_on_them(toy, tmp_path, own_cache, name):
    dataset = open_dataset(toy)
    rows = Rows(task_of(dataset), lambda: dataset.split("train").images[:, None].clone(), "themselves")
    here = trainer(toy, tmp_path, name, rows=rows)
    before = here.network().body_fingerprint()
    model = here.learn()
    assert here.train.images.shape == (48, 3, 32, 32) and "features" not in here.train.attributes
    assert model.network.frozen and model.network.body_fingerprint() == before


def test_another_body_than_that_of_the_features_is_refused(toy, tmp_path, own_cache):
    with pytest.raises(RunError, match="dfr is trained on the features of a frozen body, but begins with a network of another one"):
        trainer(toy, tmp_path, "dfr").build(frozen(5))


def test_averages_do_not_mind_frozen_batch_norm(toy, tmp_path, own_cache):
    trainer(toy, tmp_path, ema=0.9).check()
    with pytest.raises(UserError, match="--ema 0.9 averages weights, but not the statistics"):
        trainer(toy, tmp_path, ema=0.9, frozen=False).check()


def test_frozen_and_fine_tuned_trainings_are_not_mixed_up(toy, tmp_path, own_cache, weights):
    trainer(toy, tmp_path, network=BACKBONE, hidden=None).learn()
    with pytest.raises(RunError, match="is of another model|already holds a training"):
        trainer(toy, tmp_path, network=BACKBONE, hidden=None, weights=str(weights)).learn()
    resumed = trainer(toy, tmp_path, network=BACKBONE, hidden=None, weights=str(weights))
    resumed.options = replace(resumed.options, resume=True)
    with pytest.raises(RunError, match="is of another model .its pretrained differ"):
        resumed.learn()


def test_resumed_is_uninterrupted(toy, tmp_path, own_cache):
    whole = trainer(toy, tmp_path / "whole").learn()
    trainer(toy, tmp_path / "parts", steps=3).learn()
    again = trainer(toy, tmp_path / "parts")
    again.options = replace(again.options, resume=True)
    state = again.learn().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


# ---------------------------------------------------------------------------------------------------- several at once
def test_stacked_heads_are_those_trained_alone(toy, tmp_path, own_cache, weights):
    flags = {"network": BACKBONE, "hidden": None, "weights": str(weights), "batch_size": 20}
    rows = Rows(task_of(open_dataset(toy)))
    together = [trainer(toy, tmp_path / "stacked", "irm", seed, rows, **flags) for seed in (0, 1)]
    assert can_stack(together[0]) and pays(together[0]) and learn_stacked(together) == [0, 1]
    for seed in (0, 1):
        alone, stacked = trainer(toy, tmp_path / "alone", "irm", seed, rows, **flags).learn(), together[seed].learn()
        for name, value in alone.network.state_dict().items():
            torch.testing.assert_close(stacked.network.state_dict()[name], value, msg=name)
        longer = trainer(toy, tmp_path / "stacked", "irm", seed, rows, **flags, steps=9)
        longer.options = replace(longer.options, resume=True)
        longer.learn()
    assert [row["steps"] for row in results(tmp_path / "stacked")] == [9, 9]
    assert load_trained(tmp_path / "stacked", "irm", 1).network.body_fingerprint() == together[1].network().body_fingerprint()


def test_bodies_of_their_own_are_not_stacked(toy, tmp_path, own_cache):
    assert not can_stack(trainer(toy, tmp_path, "irm"))


def test_two_processes_train_the_same_head_on_features_that_one_has_made(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("OTHERWISE_CACHE", str(tmp_path / "cache"))
    command = ["--dataset", toy, "--algorithm", "irm", "--seeds", "1", *CPU, "--network", "small", "--hidden", "16", "--frozen",
               "--batch-size", "48", "--set", "unbiased=false"]  # halves depend on the order of rows, which differs in a full batch
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "experiments.train", "--"]
    done = subprocess.run([*launch, *command, "--run", str(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").glob("features-*.npz"))) == 2
    made = count_extractions(monkeypatch)
    run_command(Options, main, [*command, "--run", str(tmp_path / "one")])
    assert made == []
    one, two = (load_trained(tmp_path / run, "irm", 0).network for run in ("one", "two"))
    torch.testing.assert_close(one.head.weight, two.head.weight, rtol=1e-4, atol=1e-5)
    assert one.body_fingerprint() == two.body_fingerprint()

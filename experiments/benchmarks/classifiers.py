"""What ``experiments.benchmark`` measures of classifiers: the time that training and looking take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.base import SPLITS, CausalDataset
from datasets.options import DataOptions
from datasets.schema import Variable
from datasets.task import task_of
from experiments.attribution.xgradcam import xgradcam
from experiments.benchmarks.augmenters import measure_augmenters
from experiments.benchmarks.base import Bench, measurement
from experiments.networks.features import FEATURES
from experiments.networks.small import SmallCNN
from experiments.training.options import TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.run import rows_for, train_classifiers
from experiments.training.trainer import Trainer
from mechanisms.training.config import RunOptions
from mechanisms.training.noise import seeded


@measurement("xgradcam_per_second", "images/s", 3670, 6450, higher=True)
def xgradcam_per_second(bench: Bench) -> tuple[float, str]:
    return measure_xgradcam(), "28×28 RGB, SmallCNN, batches of 128"


@measurement("augmenter_images_per_second", "images/s", None, 200, higher=True)
def augmenter_images_per_second(bench: Bench) -> tuple[float, str]:
    """The slowest of all that ask no network."""
    speeds, attacks = measure_augmenters(), measure_augmenters(size=32, attacks=True)
    told = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    asked = ", ".join(f"{name} {speed:.0f}" for name, speed in attacks.items())
    return min(speeds.values()), f"128 RGB images of 224×224: {told}; with a SmallCNN, of 32×32: {asked}"


@measurement("irm_restart_seconds", "s", 416, 200)
def irm_restart_seconds(bench: Bench) -> tuple[float | None, str]:
    """The published recipe: 501 updates, each on all images of both environments."""
    return _trained(bench, "coloredmnist", "irm", 1)


@measurement("irm_five_restarts_seconds", "s", 5 * 416)
def irm_five_restarts_seconds(bench: Bench) -> tuple[float | None, str]:
    return _trained(bench, "coloredmnist", "irm", 5)


@measurement("masktune_seconds", "s", None, 240)
def masktune_seconds(bench: Bench) -> tuple[float | None, str]:
    """ERM by the data set's recipe, masks, and an epoch of fine-tuning."""
    return _trained(bench, "spuriousmnist", "masktune", 1)


@measurement("irm_features_restart_seconds", "s", None, 5)
def irm_features_restart_seconds(bench: Bench) -> tuple[float, str]:
    """The published recipe of WildCam on features of a frozen ResNet-18, from the network's making to its row of results."""
    device = bench.options.device
    flags = TrainingFlags(network="resnet18", frozen=True, l2=1e-3, steps=121, batch_size=1_000_000, learning_rate=1e-3, device=device)
    dataset = TwoCameras()
    plan = resolve("irm", dataset, flags, ("penalty=1e4", f"anneal={40 / 121}", "unbiased=false", "reset=false"), bench.options.seed)
    trainer = Trainer(Rows(task_of(dataset)), plan, RunOptions(bench.options.run / "irm-features", overwrite=True), lambda name: plan)
    features = trainer.train.attributes[FEATURES]  # made before the clock starts, as those of validation are
    rows = len(trainer.valid)
    began = time.perf_counter()
    trainer.check()
    trainer.learn()
    return time.perf_counter() - began, f"{len(features):,} × {features.shape[1]} features, {rows} of validation, 121 updates"


@dataclass(eq=False)
class TwoCameras(CausalDataset):
    """As many images as WildCam has, half of each camera; what they show matters little to the time that training takes."""

    label = "animal"
    spurious = ("camera",)
    variables = (Variable("camera", "binary", classes=("43", "46")),
                 Variable("animal", "binary", ("camera",), classes=("coyote", "raccoon")),
                 Variable("image", "image", ("camera", "animal"), shape=(3, 32, 32)))

    rows: int = 2133

    def environments(self, split: str) -> Tensor:
        return torch.arange(self.rows) % 2

    def load(self, split: str) -> dict[str, Tensor]:
        generator = seeded(SPLITS.index(split))
        camera = self.environments(split)
        animal = (torch.rand(self.rows, generator=generator) < 0.4 + 0.2 * camera).long()
        images = 0.7 * torch.rand(self.rows, 3, 32, 32, generator=generator) + 0.2 * animal[:, None, None, None]
        return {"camera": camera, "animal": animal, "image": images}


def _trained(bench: Bench, dataset: str, algorithm: str, seeds: int) -> tuple[float | None, str]:
    options = bench.options
    if options.mnist is None:
        return None, "needs --mnist: all of its images"
    data, flags = DataOptions(dataset, options.mnist), TrainingFlags(validations=1, device=options.device)
    opened = data.open()
    images = len(opened.split("train"))  # read before the clock starts
    run = RunOptions(options.run / f"{dataset}-{algorithm}-{seeds}", overwrite=True)
    began = time.perf_counter()
    first = options.seed
    rows = train_classifiers(rows_for(opened), [algorithm], range(first, first + seeds), flags, (), run, data)
    return time.perf_counter() - began, f"{images:,} images, {rows[0]['steps']:,} updates in the last stage"


def measure_xgradcam(count: int = 8192, batch: int = 128) -> float:
    """Images per second: maps of 28×28 RGB images by SmallCNN, resized to them; the first batch is made twice and counted once."""
    network = SmallCNN((3, 28, 28), 2)
    images = torch.rand(count, 3, 28, 28, generator=seeded(0))
    xgradcam(network, images[:batch], network.cam_layer)
    began = time.perf_counter()
    for part in images.split(batch):
        xgradcam(network, part, network.cam_layer)
    return count / (time.perf_counter() - began)

"""What ``experiments.benchmark`` measures of classifiers: the time that training and looking take."""

from __future__ import annotations

import time

from datasets.options import DataOptions
from experiments.measurements import Bench, measurement
from experiments.train import train_classifiers
from experiments.train_options import Options, TrainingFlags
from experiments.xgradcam import measure_xgradcam
from mechanisms.options import RunOptions


@measurement("xgradcam_per_second", "images/s", 3670, 6450, higher=True)
def xgradcam_per_second(bench: Bench) -> tuple[float, str]:
    return measure_xgradcam(), "28×28 RGB, SmallCNN, batches of 128"


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


def _trained(bench: Bench, dataset: str, algorithm: str, seeds: int) -> tuple[float | None, str]:
    options = bench.options
    if options.mnist is None:
        return None, "needs --mnist: all of its images"
    data, flags = DataOptions(dataset, options.mnist), TrainingFlags(validations=1, device=options.device)
    opened = data.open()
    images = len(opened.split("train"))  # read before the clock starts
    run = RunOptions(options.run / f"{dataset}-{algorithm}-{seeds}", overwrite=True)
    began = time.perf_counter()
    rows = train_classifiers(opened, Options(data, run, algorithm, seeds=seeds, seed=options.seed, training=flags))
    return time.perf_counter() - began, f"{images:,} images, {rows[0]['steps']:,} updates in the last stage"

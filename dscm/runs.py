"""The model of a run folder, with the data that it was trained on and the predictors that judge it."""

from __future__ import annotations

from pathlib import Path

from datasets.base import CausalDataset
from dscm.model import DSCM
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.anticausal.model import Predictors, load_predictors
from mechanisms.runs.files import RunError
from mechanisms.runs.folder import dataset_of
from mechanisms.training.devices import find_device
from mechanisms.training.state import WEIGHTS


def open_run(run: Path, device: str = "auto") -> tuple[DSCM, CausalDataset]:
    """The model of a run folder and the data set that it was trained on.

    Raises:
        RunError: for a folder or mechanism that is missing, a device that this machine lacks, or a data set that has
            changed since.
    """
    dscm = DSCM.load(run, find_device(device))
    dataset = dataset_of(run)
    if difference := dscm.graph.difference(dataset.graph):
        raise RunError(f"{dataset.title} is not what {run} was trained on (model against data): {difference}")
    return dscm, dataset


def find_predictors(run: Path, device: str) -> Predictors | None:
    """The run's predictors; None if none were trained.

    Raises:
        RunError: see :func:`mechanisms.anticausal.model.load_predictors`.
    """
    return load_predictors(run, device) if (run / PREDICTORS / WEIGHTS).exists() else None

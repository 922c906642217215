"""Run folders: one graph, one data set, and a sub-folder for each mechanism."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.base import CausalDataset
from datasets.options import DataOptions
from datasets.registry import open_dataset
from datasets.schema import Graph
from mechanisms.runs.files import RunError, read_json, understanding, write_json

RUN = "run.json"


def claim(run: Path, dataset: CausalDataset, data: DataOptions) -> None:
    """Mark ``run`` as belonging to this graph and data set, or check that it does.

    Raises:
        RunError: if the folder holds mechanisms of another graph, of other statistics, or of other rows or images.
    """
    graph, rows = dataset.graph, dataset.training_fingerprint
    # absolute paths, so that the run can be used from any folder
    name = str(Path(data.dataset).resolve()) if data.dataset.endswith(".py") else data.dataset
    options = {key: str(value.resolve() if isinstance(value, Path) else value) for key, value in data.as_dict().items()}
    if (run / RUN).exists():
        record, stored = recorded(run), graph_of(run)
        begun = (f"it was begun with {_named(record['dataset'], record['options'])}, and this is {_named(name, options)}. Give the options "
                 "that it was begun with, or choose another --run")
        if stored.fingerprint() != graph.fingerprint():
            asked_for_other = (record["dataset"], record["options"]) != (name, options)
            raise RunError(f"{run} belongs to another graph or training split" + (
                f": {begun}" if asked_for_other else f" ({stored.difference(graph)}); choose another --run"))
        if record.get("rows", rows) != rows:  # folders may have moved, so it is not options that are compared
            raise RunError(f"{run} belongs to other training images: {begun}")
        return
    write_json(run / RUN, {"dataset": name, "options": options, "graph": graph.to_dict(), "rows": rows})


def _named(dataset: str, options: Mapping[str, str]) -> str:
    return f"{dataset} ({', '.join(f'{key}={value}' for key, value in options.items()) or 'no options'})"


def recorded(run: Path) -> dict[str, Any]:
    """What :func:`claim` wrote.

    Raises:
        RunError: if the folder is no run folder.
    """
    if not run.is_dir():
        raise RunError(f"run folder {run} does not exist; train into it first: python -m pgm.train --run {shlex.quote(str(run))}")
    if not (run / RUN).exists():
        raise RunError(f"{run} is not a run folder: it has no {RUN}")
    return read_json(run / RUN, {"dataset": str, "options": dict, "graph": dict}, _again(run))


def graph_of(run: Path) -> Graph:
    """The graph of a run, with the statistics of its training split; raises RunError as :func:`recorded` does."""
    record = recorded(run)
    with understanding(run / RUN, _again(run)):
        return Graph.from_dict(record["graph"])


def _again(run: Path) -> str:
    return f"Restore a copy of it, or remove it and give the command that trained into {run} again with --resume, which writes it anew"


def dataset_of(run: Path) -> CausalDataset:
    """The data set that a run was trained on, opened with the same options."""
    record = recorded(run)
    return open_dataset(record["dataset"], record["options"])

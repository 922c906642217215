"""Exports intervened images of a run's data set."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from datasets.base import CausalDataset
from datasets.errors import UserError
from dscm.exports.dataset import Export
from dscm.runs import open_run
from mechanisms.runs.folder import recorded
from mechanisms.training.devices import make_accelerator
from mechanisms.training.noise import seeded
from pgm.interventions import parse_do, resolve_do


def export_run(run: Path, do: Sequence[str], out: Path, split: str = "test", count: int | None = None, draws: int | None = None,
               truth: bool = False, form: str = "pt", shard_size: int = 1000, temperature: float = 1.0, seed: int = 0,
               device: str = "auto") -> None:
    """Write the images and print how many of which; arguments as in :class:`dscm.exports.options.Options`.

    Raises:
        UserError: for a count that the split has not; see :func:`dscm.runs.open_run` and :class:`dscm.exports.dataset.Export`.
    """
    accelerator = make_accelerator(device, "fp32")
    dscm, dataset = open_run(run, accelerator.device.type)
    size = len(dataset.split(split))
    count = size if count is None else count
    if count > size:
        raise UserError(f"--count {count}: the {split} split has {size} rows; take 1..{size}")
    interventions = values_of(do, dataset, split, seed)
    export = Export(dscm.to(accelerator.device), dataset, split, count, interventions, draws, truth, temperature, seed, form, shard_size,
                    recorded(run)["options"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        export.write(out, accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        each = count * (draws or 1)
        print(f"{len(interventions) * each:,} images of {dataset.title}'s {split} split in {out}, {each:,} under each of:")
        for label, values in interventions.items():
            beyond = sum(int(dataset.graph[name].beyond_training(value[:count]).sum()) for name, value in values.items())
            print(f"  {label}" + (f"  ({beyond} of {count} values lie beyond the training data)" if beyond else ""))
        print("read them with dscm.exports.dataset.open_export(folder), or the CSV files with anything")


def values_of(do: Sequence[str], dataset: CausalDataset, split: str, seed: int) -> dict[str, dict[str, Tensor]]:
    """Label → ``{name: (N,)}``: the values that interventions set on each row of a split.

    Drawn for all rows at once, so that those of a row do not depend on how many are exported, and by how many processes;
    and from a stream of each intervention's own, so that they do not depend on which others are asked for.

    Raises:
        SchemaError: see :func:`pgm.interventions.parse_do`; for an intervention that is asked for twice.
    """
    rows, training, values = dataset.split(split), dataset.split("train").attributes, {}
    generator = seeded(seed)
    for label, action in parse_do(do, dataset.graph, training, generator):
        stream = int.from_bytes(hashlib.sha256(label.encode()).digest()[:6], "big")
        generator.set_state(seeded(seed, stream).get_state())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the command reports what lies beyond the training data
            values[label], _ = resolve_do(dataset.graph, action, rows.attributes, len(rows))
    return values

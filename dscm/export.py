"""``python -m dscm.export``: intervened images on disk, with attributes, source rows and provenance, for any trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from datasets.errors import UserError
from datasets.ranges import AtLeastOne, NotNegative, Seed, check_ranges, within
from mechanisms.runs.command import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.base import CausalDataset


Draws = within(1, 10_000)  # all of a row's are computed at once


@dataclass(frozen=True)
class Options:
    """Write a data set of intervened images: each row of a split under each intervention, once or several times.

    An interrupted export goes on with the same command. Under torchrun each process writes its share of the shards.

    For instance: python -m dscm.export --run runs/model --do thickness~marginal --draws 4 --out exports/thickness
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms."""
    do: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Interventions: name=value[,value…], name+=delta[,delta…] or name~marginal; may be repeated, each is written apart."""
    out: Path = Path("export")
    """Folder to write; empty, new, or of the same export."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the observed images come from."""
    count: AtLeastOne[int | None] = None
    """How many images, from the beginning of the split; all of them if not given."""
    draws: Draws[int | None] = None
    """Posterior draws of each image's latents, each an image of its own. Without it, one answer at the latents' mean."""
    truth: bool = False
    """Also write what the true process makes of the same rows and values, where it is known."""
    format: Literal["pt", "npz", "png"] = "pt"
    """One file of tensors or arrays a shard, or one PNG an image; a CSV with a line for each image lies beside it in any case."""
    shard_size: AtLeastOne[int] = 1000
    """Rows of a shard; what is written does not depend on it, nor on the number of processes."""
    temperature: NotNegative[float] = 1.0
    """Of the pixel residual: 1 keeps every detail of the image, 0 shows what the latents explain."""
    seed: Seed[int] = 0
    """Of values drawn from a marginal, and of latents."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for what makes no sense."""
        if not self.do:
            raise UserError("nothing to export: give at least one intervention, such as --do thickness~marginal")
        check_ranges(self)


def values_of(do: tuple[str, ...], dataset: CausalDataset, split: str, seed: int) -> dict[str, dict[str, Tensor]]:
    """Label → ``{name: (N,)}``: the values that interventions set on each row of a split.

    Drawn for all rows at once, so that those of a row do not depend on how many are exported, and by how many processes;
    and from a stream of each intervention's own, so that they do not depend on which others are asked for.

    Raises:
        SchemaError: see :func:`pgm.interventions.parse_do`; for an intervention that is asked for twice.
    """
    import hashlib
    import warnings

    from mechanisms.training.noise import seeded
    from pgm.interventions import parse_do, resolve_do

    rows, training, made = dataset.split(split), dataset.split("train").attributes, {}
    generator = seeded(seed)
    for label, action in parse_do(do, dataset.graph, training, generator):
        stream = int.from_bytes(hashlib.sha256(label.encode()).digest()[:6], "big")
        generator.set_state(seeded(seed, stream).get_state())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the command reports what lies beyond the training data
            made[label], _ = resolve_do(dataset.graph, action, rows.attributes, len(rows))
    return made


def main(options: Options) -> None:
    options.check()
    import warnings

    from dscm.counterfactual import open_run
    from dscm.exports.dataset import Export
    from mechanisms.runs.folder import recorded
    from mechanisms.training.devices import make_accelerator

    accelerator = make_accelerator(options.device, "fp32")
    dscm, dataset = open_run(options.run, accelerator.device.type)
    size = len(dataset.split(options.split))
    count = size if options.count is None else options.count
    if count > size:
        raise UserError(f"--count {count}: the {options.split} split has {size} rows; take 1..{size}")
    interventions = values_of(options.do, dataset, options.split, options.seed)
    export = Export(dscm.to(accelerator.device), dataset, options.split, count, interventions, options.draws, options.truth,
                    options.temperature, options.seed, options.format, options.shard_size, recorded(options.run)["options"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        export.write(options.out, accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        each = count * (options.draws or 1)
        print(f"{len(interventions) * each:,} images of {dataset.title}'s {options.split} split in {options.out}, {each:,} under each of:")
        for label, do in interventions.items():
            beyond = sum(int(dataset.graph[name].beyond_training(value[:count]).sum()) for name, value in do.items())
            print(f"  {label}" + (f"  ({beyond} of {count} values lie beyond the training data)" if beyond else ""))
        print("read them with dscm.exports.dataset.open_export(folder), or the CSV files with anything")


if __name__ == "__main__":
    run_command(Options, main)

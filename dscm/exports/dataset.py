"""Intervened images on disk, for any trainer: written shard by shard, each whole or not at all, and read back.

A folder holds ``provenance.json`` and, for each intervention, a sub-folder of shards: ``00000.csv`` with a line for each
image (file, source row, draw, attributes in physical units) beside ``00000.pt``, ``00000.npz`` or a folder of PNGs. The
CSV is written last, so a shard that has one is complete.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datasets.base import CausalDataset, Split, fingerprint
from datasets.files.images import ImageFiles
from datasets.memory import size_of
from datasets.variable import DISCRETE
from dscm.checks import check_prediction
from dscm.exports.files import (
    COLUMNS,
    DRAW,
    FILE,
    INTERVENTION,
    KIND,
    SOURCE,
    TRUTH_FILE,
    WRITERS,
    Shard,
    check_files,
    parsed,
    read_shard,
    read_table,
    shards,
    synced,
)
from dscm.exports.record import AGAIN, PROVENANCE, claim
from mechanisms.runs.files import RunError, damaged, read_json, replacing, versions, weights_fingerprint
from mechanisms.training.noise import seeded

if TYPE_CHECKING:
    from dscm.model import DSCM

FORMAT = 3
_LONGEST = 80  # characters of a folder's name: file systems take 255 bytes
_BLOCK = 64  # rows that share a stream of noise, whatever the shards and processes


def weights_hash(dscm: DSCM) -> str:
    """A hash of every weight of both mechanisms; models with the same one give the same answers."""
    return weights_fingerprint(dscm.attributes, dscm.image)


# -------------------------------------------------------------------------------------------------------- writing
@dataclass(frozen=True)
class Export:
    """What is to be written: images of the first ``count`` rows of a split under each of several interventions.

    Attributes:
        interventions: label → ``{name: (N,)}`` values that are set in each row of the split, in physical units.
        draws: posterior draws of each image; None for one answer at the latents' mean, which is draw 0.
        truth: also write what the true process makes of the same rows and values.
        options: of the data set, for the record.
    """

    dscm: DSCM
    dataset: CausalDataset
    split: str
    count: int
    interventions: Mapping[str, Mapping[str, Tensor]]
    draws: int | None = None
    truth: bool = False
    temperature: float = 1.0
    seed: int = 0
    form: str = "pt"
    shard_size: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises UserError for true images that nobody knows, images that a PNG cannot hold, and a temperature without a residual."""
        check_prediction(self.dscm.image, self.temperature)
        for label, do in self.interventions.items():
            if self.truth and not self.dataset.has_truth(list(do)):
                raise RunError(f"--truth: {self.dataset.title} has no true images under {label}; known are those under "
                               f"{', '.join(self.dataset.true_images_under) or 'no intervention'}")
        if self.form == "png" and self.dataset.schema.image.shape[0] not in (1, 3):
            raise RunError(f"--format png holds images of 1 or 3 channels; those of {self.dataset.title} have "
                           f"{self.dataset.schema.image.shape[0]}. Take --format pt or npz")

    @property
    def folders(self) -> list[str]:
        """A sub-folder for each intervention: its number and its label without signs that file systems dislike."""
        plain = [re.sub(r"[^A-Za-z0-9_.+]+", "-", label)[:_LONGEST] for label in self.interventions]
        return [f"{k:02d}-{label}" for k, label in enumerate(plain)]

    @property
    def kept_options(self) -> dict[str, str]:
        """The data set's options as the record has them: no folder of this machine."""
        return {key: _without_folder(value) for key, value in self.options.items()}

    def provenance(self) -> dict[str, Any]:
        """Plain values that determine every image, and what to know about them."""
        rows, calibration = self.dataset.split(self.split), self.dscm.calibration
        return {
            "kind": KIND, "format": FORMAT, "dataset": self.dataset.title,
            "options": self.kept_options,
            "graph": self.dscm.graph.fingerprint(), "weights": weights_hash(self.dscm),
            "calibration": None if calibration is None else {k: dict(v) for k, v in calibration.spread.items()},
            "split": self.split, "count": self.count, "rows": fingerprint(rows, torch.arange(self.count)), "seed": self.seed,
            "do": list(self.interventions), "values": self._values(), "folders": self.folders, "draws": self.draws,
            "temperature": self.temperature, "truth": self.truth, "files": self.form, "shape": list(self.dataset.schema.image.shape),
            "shard_size": self.shard_size, "attributes": {v.name: v.kind for v in self.dataset.graph.attributes},
            "images": self.count * (self.draws or 1) * len(self.interventions), "versions": versions()}

    def _values(self) -> dict[str, str]:
        """Label → a hash of the values that are set, since a label such as ``thickness~marginal`` does not say which."""
        hashes = {}
        for label, do in self.interventions.items():
            digest = hashlib.sha256()
            for name, value in sorted(do.items()):
                digest.update(f"{name} {value.dtype} ".encode())
                digest.update(value[: self.count].cpu().contiguous().numpy().tobytes())
            hashes[label] = digest.hexdigest()[:16]
        return hashes

    def write(self, out: Path, rank: int = 0, world: int = 1) -> tuple[int, int]:
        """Write every ``world``-th shard, from number ``rank`` on, that is not there yet; returns how many were written and kept.

        What a shard holds depends neither on the number of processes nor on the size of shards.

        Raises:
            RunError: for a folder with other contents or of other provenance, which stays as it is; for one that cannot be written.
        """
        from tqdm import tqdm

        self.check()
        self._check_space(out)
        claim(out, self.provenance())
        mine = list(shards(out, self.folders, self.count, self.shard_size))[rank::world]
        missing = [shard for shard in mine if not shard.complete]
        with tqdm(total=sum(len(s.rows) for s in missing) * (self.draws or 1), desc=f"images to {out}", unit=" images",
                  disable=rank > 0, dynamic_ncols=True, delay=1) as bar:
            for shard in missing:
                self._write_shard(shard)
                bar.update(len(shard.rows) * (self.draws or 1))
        return len(missing), len(mine) - len(missing)

    def _check_space(self, out: Path) -> None:
        """Raises RunError where the images alone, as bytes, would fill the disk; PNGs may be smaller, but not by an order."""
        place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        count = self.count * (self.draws or 1) * len(self.interventions)
        each = math.prod(self.dataset.schema.image.shape) * (2 if self.truth else 1) / (10 if self.form == "png" else 1)
        if count * each > (free := shutil.disk_usage(place).free + _size(out)):
            raise RunError(f"--out {out}: {count:,} images need {size_of(count * each)}; {place} has {size_of(free)}. Take a smaller "
                           "--count, fewer --draws, or another place")

    def _write_shard(self, shard: Shard) -> None:
        label, do = list(self.interventions.items())[shard.intervention]
        first, last, parts = shard.rows.start, shard.rows.stop, []  # of attributes, and of images and true images
        for start in range(first // _BLOCK * _BLOCK, last, _BLOCK):  # whole blocks: a part of one would see other noise
            block = range(start, min(start + _BLOCK, len(self.dataset.split(self.split))))
            keep = slice(max(first, block.start) - start, min(last, block.stop) - start)
            block_parts = self._block(torch.arange(block.start, block.stop), do, shard.intervention)
            parts.append([{name: value[:, keep] for name, value in part.items()} for part in block_parts])
        # (K, rows, …), draw by draw → the draws of a row beside each other
        state, pictures = ({name: torch.cat([part[k][name] for part in parts], 1).transpose(0, 1).flatten(0, 1) for name in parts[0][k]}
                           for k in (0, 1))
        index = torch.arange(first, last).repeat_interleave(self.draws or 1)
        draw = torch.arange(self.draws or 1).repeat(last - first)
        names = WRITERS[self.form](shard.path, pictures["images"], pictures.get("truth"), index, draw, state)
        header = [*COLUMNS, *state]
        with replacing(shard.csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            for k, (name, true_name) in enumerate(names):
                table.writerow([name, true_name, label, int(index[k]), int(draw[k]), *(_number(value[k]) for value in state.values())])
            synced(file)

    def _block(self, index: Tensor, do: Mapping[str, Tensor], number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Attributes ``(K, B)``; ``images`` and, if they are asked for, ``truth``, ``(K, B, C, H, W)`` uint8; of consecutive rows."""
        values = {name: value[index] for name, value in do.items()}
        observed = self.dataset.split(self.split).batch(index)
        answer = self.dscm.counterfactual(observed, values, self.draws, self.temperature, seeded(self.seed, number, int(index[0])))
        count = self.draws or 1
        images = answer.image[None] if answer.draws is None else answer.draws
        attributes = answer.attribute_draws or {name: value[None] for name, value in answer.attributes.items()}
        pictures = {"images": as_bytes(images)}
        if self.truth:
            true = self.dataset.true_counterfactual(self.split, index, values)["image"]
            pictures["truth"] = as_bytes(true).expand(count, *true.shape)
        return {name: value.cpu() for name, value in attributes.items()}, pictures


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def as_bytes(images: Tensor) -> Tensor:
    return (images.cpu() * 255).round().to(torch.uint8)


def _number(value: Tensor) -> str:
    return f"{float(value):.9g}" if value.is_floating_point() else str(int(value))


def _without_folder(value: Any) -> str:
    """An option for the record, of a path its name alone: exports are given away, and folders are nobody's business."""
    text = str(value)
    folder = next((path for path in (PurePosixPath(text), PureWindowsPath(text)) if path.is_absolute()), None)
    return text if folder is None else folder.name


# -------------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True)
class Exported(Split):
    """Intervened images as a split, row for row with where they come from.

    Attributes:
        source: ``(N,)`` the row of the split that each image is a counterfactual of.
        draw: ``(N,)`` the number of the posterior draw.
        interventions: the label of the intervention of each image.
        truth: the true images, uint8 ``(N, C, H, W)`` or lazy; None if they were not written.
        provenance: what ``provenance.json`` says.
    """

    source: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    draw: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    interventions: tuple[str, ...] = ()
    truth: Tensor | ImageFiles | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def _checked(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The record of an export; raises RunError for one that cannot be what :meth:`Export.provenance` told."""
    read_json(path, {"folders": list, "count": int, "shard_size": int, "draws": (int, NoneType), "truth": bool, "attributes": dict,
                     "files": str, "shape": list, "split": str}, AGAIN)
    wrong = [f"{name} {about[name]}" for name in ("count", "shard_size") if about[name] < 1]
    wrong += [f"draws {about['draws']}"] if about["draws"] is not None and about["draws"] < 1 else []
    wrong += [f"files {about['files']}"] if about["files"] not in WRITERS else []
    wrong += [f"folder {name!r}" for name in about["folders"] if not isinstance(name, str) or Path(name).name != name]
    wrong += [f"shape {about['shape']}"] if len(about["shape"]) != 3 or not all(type(n) is int and n > 0 for n in about["shape"]) else []
    if wrong:
        raise damaged(path, f"there is no export of {', '.join(wrong)}", AGAIN)
    return about


def open_export(out: Path | str) -> Exported:
    """What :meth:`Export.write` wrote; PNGs are read one by one as they are asked for.

    Raises:
        RunError: for a folder that holds no export, one that is not complete, or a damaged file.
    """
    out = Path(out)
    about = read_json(out / PROVENANCE, {}, AGAIN)
    if about.get("kind") != KIND or about.get("format") != FORMAT:
        raise RunError(f"{out / PROVENANCE} is not the record of an export (format {FORMAT}); python -m dscm.export --out {out} writes one")
    about = _checked(out / PROVENANCE, about)
    parts = []
    for shard in shards(out, about["folders"], about["count"], about["shard_size"]):
        if not shard.complete:  # at once, since a damaged record may ask for any number of them
            due = len(about["folders"]) * -(-about["count"] // about["shard_size"])
            raise RunError(f"{out} is not complete: {shard.csv}, shard {len(parts) + 1:,} of {due:,}, is missing. The same dscm.export "
                           "command goes on where it stopped")
        parts.append(shard)
    each, header = about["draws"] or 1, [*COLUMNS, *about["attributes"]]
    read = [(shard, read_table(shard, header, len(shard.rows) * each)) for shard in parts]
    lines = [line for _, table in read for line in table]

    def column(name: str, whole: bool) -> Tensor:
        return torch.cat([parsed(shard, table, name, whole) for shard, table in read])

    if about["files"] == "png":
        for shard, table in read:
            check_files(shard, table, about["truth"])
        images, truth = (ImageFiles([shard.path.parent / line[which] for shard, table in read for line in table], tuple(about["shape"]))
                         if which == FILE or about["truth"] else None for which in (FILE, TRUTH_FILE))
    else:
        held = [read_shard(shard, about["files"], len(shard.rows) * each, tuple(about["shape"]), about["truth"]) for shard in parts]
        images = torch.cat([state["images"] for state in held])
        truth = torch.cat([state["truth"] for state in held]) if about["truth"] else None
    attributes = {name: column(name, kind in DISCRETE) for name, kind in about["attributes"].items()}
    return Exported(about["split"], images, attributes, column(SOURCE, True), column(DRAW, True),
                    tuple(line[INTERVENTION] for line in lines), truth, about)

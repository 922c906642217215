"""Experts put to use: every image of a folder through the one that wins it."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datasets.files.folder import common_size, image_paths, read_images
from mechanisms.experts.compare import RESULT
from mechanisms.experts.model import FOLDER, Experts, folder_of, some_seeds
from mechanisms.runs.files import RunError, load, read_json, replacing
from mechanisms.runs.folder import recorded
from mechanisms.training.devices import find_device
from mechanisms.training.state import CONFIG, WEIGHTS


def apply(run: Path, folder: Path, out: Path, seed: int | None = None, device: str = "cpu") -> Path:
    """Every image of ``folder`` through the expert that wins it, written to ``out`` under its name as PNG, with ``routes.csv``.

    They must be of one size: that of the experts' images, or that without the padding which these had, see :func:`_of_the_experts_size`.

    Args:
        seed: whose experts; the lowest there is without it.

    Returns:
        The path of ``routes.csv``: file, winner, the mechanism that it was found to undo if any is, and the score of every expert.

    Raises:
        UserError: for a folder without images, with images of several sizes or of one that does not suit, or broken ones; for
            names that differ in their endings only; for a seed that was not trained; for ``out`` that is ``folder``.
    """
    model = Experts.load(run, seed, find_device(device))
    if out.resolve() == folder.resolve():
        raise RunError(f"--out {out} is the folder that is read; choose another one")
    paths, written = image_paths(folder), {}
    for path in paths:
        if (first := written.setdefault(f"{path.stem}.png", path)) is not path:
            raise RunError(f"{first} and {path} would both be written as {path.stem}.png; rename one of them")
    used = some_seeds(run)[0] if seed is None else seed
    undoes = _undoes(run, used)
    made, winner, scores = (found.cpu() for found in model.invert(_of_the_experts_size(paths, model, run)))
    out.mkdir(parents=True, exist_ok=True)
    for path, image in zip(paths, made, strict=True):
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with replacing(out / f"{path.stem}.png") as temporary:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(temporary, format="png")
    routes = out / "routes.csv"
    with replacing(routes) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "winner", "undoes", *(f"score_{e}" for e in range(scores.shape[1]))])
        for path, w, row in zip(paths, winner.tolist(), scores.tolist(), strict=True):
            writer.writerow([path.name, w, undoes.get(str(w), ""), *(f"{value:.4f}" for value in row)])
    counts = Counter(winner.tolist()).most_common()
    told = ", ".join(f"{n} by expert {w}" + (f" ({undoes[str(w)]})" if str(w) in undoes else "") for w, n in counts)
    print(f"{len(paths)} images through the experts of seed {used}: {told}")
    return routes


def _undoes(run: Path, seed: int) -> dict[str, str]:
    """expert → mechanism that it has found; warns where the training has not ended."""
    folder = folder_of(run, seed)
    step, asked = load(folder / WEIGHTS, FOLDER)["step"], read_json(folder / CONFIG, {"training": dict})["training"].get("steps")
    if asked and step < asked:
        warnings.warn(f"the experts of {folder} were stopped after {step:,} of {asked:,} updates; train them to the end with --resume",
                      stacklevel=2)
    return read_json(folder / RESULT, {}).get("found", {}) if (folder / RESULT).exists() else {}


def _of_the_experts_size(paths: list[Path], model: Experts, run: Path) -> Tensor:
    """Images, float in [0, 1] ``(N, C, H, W)``, of the experts' size.

    A mechanism has acted on them already, on what is around them too, so they are padded by repeating their edges: black
    would be right for some mechanisms only. They are resized only if training images were.

    Raises:
        UserError: for sizes that differ, or one that does not suit.
    """
    channels, *whole = model.shape
    size, inner = list(common_size(paths)), [side - 2 * model.margin for side in whole]
    if size == inner:
        return F.pad(read_images(paths, (channels, *inner)).float() / 255, (model.margin,) * 4, mode="replicate")
    if size != whole and recorded(run)["options"].get("size", "0") == "0":
        suits = " or ".join(f"{height} × {width}" for height, width in ([whole, inner] if model.margin else [whole]))
        raise RunError(f"images of {paths[0].parent} have {size[0]} × {size[1]} pixels, the experts of {run} take {suits}, and their "
                       "training images were not resized; crop or resize these so that what they show is as large as it was there")
    return read_images(paths, model.shape).float() / 255

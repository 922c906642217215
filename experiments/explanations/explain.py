"""What ``experiments.explain`` draws: a run's classifier, or one of the user's own, and what it looks at."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from datasets.base import Split
from datasets.options import DataOptions
from datasets.task import task_of
from dscm.figures.style import check_format, save_figure
from experiments.algorithms.base import Algorithm
from experiments.algorithms.masks import Masks, load_masks, masked
from experiments.algorithms.masktune import MaskTune, MaskTuneSettings, next_masks, stage_name
from experiments.algorithms.registry import ALGORITHMS, algorithm, spelled
from experiments.attribution.methods import attribution
from experiments.explanations.figure import Panel, explanation_figure
from experiments.explanations.images import chosen_images, in_words
from experiments.explanations.maps import HeatMaps
from experiments.explanations.options import ImageChoice
from experiments.networks.own import PROGRAM, open_own
from experiments.networks.registry import rebuild
from experiments.training.store import Trained, check_base, folder_of, is_finished, list_trained, load_trained, trained_task
from mechanisms.runs.files import RunError, load, rebuilt
from mechanisms.training.devices import find_device
from mechanisms.training.state import WEIGHTS

_ORANGE = "orange text: the prediction is wrong"


def explain(out: Path, run: Path, choice: ImageChoice, *, named: str = "", seed: int = 0, rule: str = "last", method: str = "xgradcam",
            layer: str = "", device: str = "auto") -> Path:
    """Heat maps of a classifier of the run; of MaskTune with what it was before, and the masks. The picture's path.

    Args:
        named: the algorithm; if empty MaskTune if the run has it, else the last that it has.
        seed: of the algorithm's seeds.
        rule: by which its weights were selected.

    Raises:
        UserError: for classifiers, rules, shifts or images that are not there; for a network without maps; for a MaskTune
            whose ERM has been trained anew since; for a picture that cannot be written.
    """
    check_format(out)
    return save_figure(explained(run, choice, find_algorithm(run, named, seed), seed, rule, method, layer, device), out)


def explained(run: Path, choice: ImageChoice, kind: type[Algorithm], seed: int = 0, rule: str = "last", method: str = "xgradcam",
              layer: str = "", device: str = "auto") -> Figure:
    """The picture of :func:`explain`."""
    device = find_device(device)
    trained = load_trained(run, kind.name, seed, rule, device)
    task = trained_task(run, trained)
    images = chosen_images(task, choice)
    maps = HeatMaps(task, images, attribution(method), layer, shifted=bool(choice.shift))
    notes, panels = [_ORANGE], [maps.input()]
    if kind is MaskTune:
        before = load_trained(run, "erm", seed, "last", device)
        check_base(run, trained, before)
        masks, masking = masks_of(run, trained, before.network, images, used=choice.split == "train" and not choice.shift)
        earlier = trained.description["settings"]["iterations"] - 1
        pixels = masked(images, masks).batch(slice(None))["image"]
        lines = [[f"{count} pixels dropped" if count else "nothing to drop"] for count in masks.counts.tolist()]
        panels += [maps.heat(masking, f"before\niteration {earlier}" if earlier else "before\nERM"),
                   Panel("masked\nas for fine-tuning", pixels, lines, outline=masks.dropped),
                   maps.heat(trained.network, "after\nMaskTune")]
        notes[0] += "; orange line: dropped, black to the network"
    else:
        if kind.name != "erm" and is_finished(run, "erm", seed):
            panels.append(maps.heat(load_trained(run, "erm", seed, rule, device).network, "ERM"))
        panels.append(maps.heat(trained.network, kind.title))
    notes += maps.notes(trained.network, f"weights selected by: {rule}; ")
    title = f"{kind.title}, seed {seed}: {maps.method.title}, {in_words(task, choice)}"
    return explanation_figure(panels, title, notes, scale=maps.scale, signed=maps.method.signed)


def explain_own(out: Path, source: Path | DataOptions, choice: ImageChoice, classifier: str, weights: Path | None = None, *,
                outputs: str = "auto", method: str = "saliency", layer: str = "", device: str = "auto") -> Path:
    """Heat maps of a classifier from the user's file. The picture's path.

    Args:
        source: a run, whose data set is looked at, or a data set.

    Raises:
        UserError: for what :func:`experiments.networks.own.open_own` refuses; for an exported program, whose layers are
            no longer there; for a picture that cannot be written.
    """
    check_format(out)
    if Path(classifier).suffix == PROGRAM:
        raise RunError(f"--classifier {classifier}: an exported program has no layers that could be looked into; give "
                       "file.py:build and --weights")
    task = task_of(source.open()) if isinstance(source, DataOptions) else trained_task(source)
    own = open_own(classifier, task, weights, device=find_device(device), outputs=outputs)
    maps = HeatMaps(task, chosen_images(task, choice), attribution(method), layer, shifted=bool(choice.shift))
    network = own.module()
    panels = [maps.input(), maps.heat(network, own.name)]
    title = f"{own.name}: {maps.method.title}, {in_words(task, choice)}"
    notes = [_ORANGE, *maps.notes(network)]
    return save_figure(explanation_figure(panels, title, notes, scale=maps.scale, signed=maps.method.signed), out)


# -------------------------------------------------------------------------------------------------------- what is looked at
def find_algorithm(run: Path, named: str, seed: int) -> type[Algorithm]:
    """The one that is named, or MaskTune if the run has it, or the last that it has of that seed.

    Raises:
        RunError: for an unknown one.
    """
    names = [name for name, trained_seed in list_trained(run) if trained_seed == seed]
    if named and spelled(named) not in ALGORITHMS:
        raise RunError(f"unknown algorithm {named!r}; {run} has {', '.join(names) or 'none'}")
    return algorithm(named or (names[-1] if names and MaskTune.name not in names else MaskTune.name))


def masks_of(run: Path, trained: Trained, before: nn.Module, images: Split, used: bool) -> tuple[Masks, nn.Module]:
    """What fine-tuning drops of these images, and the network whose maps tell so, the newest before the last iteration.

    Args:
        trained: a MaskTune; ``before``: the network that it started from.
        used: whether the images are those of training, of which it is known what was dropped; of others, it is computed what
            would have been.
    """
    settings, folder = MaskTuneSettings(**trained.description["settings"]), folder_of(run, MaskTune.name, trained.seed)
    networks = [before]
    for number in range(1, settings.iterations):
        state = load(folder / stage_name(number) / WEIGHTS, "classifier")
        network = rebuilt(folder / stage_name(number) / WEIGHTS, partial(rebuild, state), state.get("weights"))
        networks.append(network.to(next(before.parameters()).device).eval())
    if used:
        if (kept := load_masks(folder / f"masks-{settings.iterations}.pt")) is None:
            raise RunError(f"{folder} has no masks-{settings.iterations}.pt, which masktune trained with; train it again: "
                           f"python -m experiments.train --run {shlex.quote(str(run))} --algorithm masktune --overwrite")
        return Masks(kept.dropped[images.attributes["row"]], kept.blank[images.attributes["row"]]), networks[-1]
    masks = None
    for number, network in enumerate(networks, 1):
        masks = next_masks(network, images, settings, trained.seed, number, masks)
    return masks, networks[-1]

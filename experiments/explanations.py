"""What ``experiments.explain`` draws: a run's classifier, or one of the user's own, and what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.base import Split
from datasets.task import Task, task_of
from dscm.figures import written
from experiments.algorithms.masktune import MaskTune, MaskTuneSettings, next_masks, stage_name
from experiments.algorithms.registry import algorithm
from experiments.classifier import Trained, check_base, folder_of, is_finished, list_trained, load_trained
from experiments.explain import Options
from experiments.explain_figure import Panel, explanation_figure, prediction_lines
from experiments.masking import Masks, load_masks, masked
from experiments.networks import rebuild
from experiments.own_classifier import PROGRAM, open_own
from experiments.xgradcam import evaluating, xgradcam
from mechanisms.bookkeeping import WEIGHTS
from mechanisms.checkpoint import RunError, load
from mechanisms.devices import find_device
from mechanisms.noise import seeded
from mechanisms.runs import dataset_of

_ORANGE = "orange text: the prediction is wrong"


def explain(options: Options) -> Figure:
    """Heat maps of a classifier of the run; of MaskTune with what it was before, and the masks.

    Raises:
        UserError: for classifiers, rules, shifts or images that are not there; for a network without maps; for a MaskTune
            whose ERM has been trained anew since.
    """
    device = find_device(options.device)
    kind = algorithm(options.algorithm)
    trained = load_trained(options.run, kind.name, options.seed_of, options.rule, device)
    task = trained_task(options.run, trained)
    images, notes = _images(task, options), [_ORANGE]
    panels = [_input(task, images)]
    if kind is MaskTune:
        before = load_trained(options.run, "erm", options.seed_of, "last", device)
        check_base(options.run, trained, before)
        masks, seen = _masks(options, trained, before.network, images)
        earlier = trained.description["settings"]["iterations"] - 1
        pixels = masked(images, masks).batch(slice(None))["image"]
        lines = [[f"{count} pixels dropped" if count else "nothing to drop"] for count in masks.counts.tolist()]
        panels += [_heat(task, images, seen, f"before\niteration {earlier}" if earlier else "before\nERM", options.layer),
                   Panel("masked\nas for fine-tuning", pixels, lines, outline=masks.dropped),
                   _heat(task, images, trained.network, "after\nMaskTune", options.layer)]
        notes[0] += "; orange line: dropped, black to the network"
    else:
        if kind.name != "erm" and is_finished(options.run, "erm", options.seed_of):
            erm = load_trained(options.run, "erm", options.seed_of, options.rule, device)
            panels.append(_heat(task, images, erm.network, "ERM", options.layer))
        panels.append(_heat(task, images, trained.network, kind.title, options.layer))
    notes.append(f"weights selected by: {options.rule}; XGradCAM of {_layer(trained.network, options.layer)}")
    return explanation_figure(panels, f"{kind.title}, seed {options.seed_of}, {_where(task, options)}", notes)


def explain_own(options: Options) -> Figure:
    """Heat maps of a classifier from the user's file, on the run's data set or, without a run, on that of the flags.

    Raises:
        UserError: for what :func:`experiments.own_classifier.open_own` refuses; for an exported program, whose layers are
            no longer there.
    """
    if Path(options.classifier).suffix == PROGRAM:
        raise RunError(f"--classifier {options.classifier}: an exported program has no layers that could be looked into; give "
                       "file.py:build and --weights")
    task = task_of(options.data.open()) if options.run is None else trained_task(options.run)
    own = open_own(options.classifier, task, options.weights, device=find_device(options.device))
    images, network = _images(task, options), own.network
    if task.classes == 2:  # a single number may stand for both logits
        network.register_forward_hook(lambda module, given, output: _two(output))
    panels = [_input(task, images), _heat(task, images, network, own.name, options.layer)]
    return explanation_figure(panels, f"{own.name}, {_where(task, options)}", [_ORANGE, f"XGradCAM of {options.layer}"])


# -------------------------------------------------------------------------------------------------------- what is looked at
def trained_task(run: Path, trained: Trained | None = None) -> Task:
    """The task that the run's classifiers were trained for; the data set's own where there are none."""
    if trained is None and (there := list_trained(run)):
        trained = load_trained(run, *there[0])
    told = trained.description["task"] if trained else None
    dataset = dataset_of(run)
    return task_of(dataset, told["label"], tuple(told["spurious"]), told["environment"]) if told else task_of(dataset)


def _images(task: Task, options: Options) -> Split:
    """The images that are asked for, with all their attributes and their ``row``."""
    dataset = task.dataset
    rows = dataset.split(options.split)
    index = torch.tensor(options.chosen(len(rows)))
    world = rows.batch(index)
    if options.shift:
        attributes = {name: value for name, value in world.items() if name != "image"}
        world = dataset.true_counterfactual(options.split, index, task.shifted(options.shift, attributes, seeded(options.seed)))
    pixels = (world["image"] * 255).round().to(torch.uint8)
    return Split(options.split, pixels, {**{v.name: world[v.name] for v in dataset.graph.attributes}, "row": index})


def _where(task: Task, options: Options) -> str:
    return f"{options.split} images of {task.dataset.title}" + (f" under the shift {options.shift!r}" if options.shift else "")


def _masks(options: Options, trained: Trained, before: nn.Module, images: Split) -> tuple[Masks, nn.Module]:
    """What fine-tuning drops of these images, and the network whose maps tell so, the newest before the last iteration.

    Of training images it is what was dropped, of others what would have been.
    """
    settings, folder = MaskTuneSettings(**trained.description["settings"]), folder_of(options.run, MaskTune.name, options.seed_of)
    networks = [before]
    for number in range(1, settings.iterations):
        state = load(folder / stage_name(number) / WEIGHTS, "classifier")
        network = rebuild(state)
        network.load_state_dict(state["weights"])
        networks.append(network.to(next(before.parameters()).device).eval())
    if options.split == "train" and not options.shift:
        if (used := load_masks(folder / f"masks-{settings.iterations}.pt")) is None:
            raise RunError(f"{folder} has no masks-{settings.iterations}.pt, which masktune trained with; train it again: "
                           f"python -m experiments.train --run {options.run} --algorithm masktune --overwrite")
        return Masks(used.dropped[images.attributes["row"]], used.blank[images.attributes["row"]]), networks[-1]
    masks = None
    for number, network in enumerate(networks, 1):
        masks = next_masks(network, images, settings, options.seed_of, number, masks)
    return masks, networks[-1]


# -------------------------------------------------------------------------------------------------------- panels
def _input(task: Task, images: Split) -> Panel:
    shown = (task.label, *task.spurious)
    lines = [[f"{v.name} {written(v, images.attributes[v.name][row], unit=True)}" for v in shown] for row in range(len(images))]
    return Panel("image", images.batch(slice(None))["image"], lines)


def _heat(task: Task, images: Split, network: nn.Module, heading: str, layer: str) -> Panel:
    pixels = images.batch(slice(None))["image"]
    there = pixels.to(next(network.parameters()).device)
    heat = xgradcam(network, there, _layer(network, layer)).cpu()
    with torch.no_grad(), evaluating(network):
        probabilities = network(there).float().softmax(1).cpu()
    wrong = probabilities.argmax(1) != images.attributes[task.label.name]
    return Panel(heading, pixels, _told(probabilities, task.label.classes, heat), heat, wrong=wrong)


def _told(probabilities: Tensor, classes: Sequence[str], heat: Tensor) -> list[list[str]]:
    """The prediction, and a word where a map is empty."""
    lines = prediction_lines(probabilities, classes)
    return [[*line, "no evidence found"] if not row.any() else line for line, row in zip(lines, heat, strict=True)]


def _layer(network: nn.Module, layer: str) -> str:
    """Which layer to read.

    Raises:
        RunError: for a network that names none.
    """
    if not (found := layer or network.cam_layer):
        raise RunError(f"--network {network.name} has no layer of maps to draw; train with --network smallcnn, or name one: --layer NAME")
    return found


def _two(output: Tensor) -> Tensor:
    """Logits ``(B, 2)`` also of a single output l: (−l/2, l/2)."""
    if output.ndim == 2 and output.shape[1] == 2:
        return output
    return torch.stack([-output.reshape(-1) / 2, output.reshape(-1) / 2], 1)

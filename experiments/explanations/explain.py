"""What ``experiments.explain`` draws: a run's classifier, or one of the user's own, and what it looks at."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.base import Split
from datasets.task import Task, task_of
from dscm.figures.style import written
from experiments.algorithms.base import Algorithm
from experiments.algorithms.masks import Masks, load_masks, masked
from experiments.algorithms.masktune import MaskTune, MaskTuneSettings, next_masks, stage_name
from experiments.algorithms.registry import ALGORITHMS, algorithm, spelled
from experiments.attribution.focus import foreground, scores
from experiments.attribution.methods import Attribution, attribution
from experiments.explanations.figure import Panel, explanation_figure, prediction_lines
from experiments.explanations.options import Options
from experiments.networks.base import evaluating
from experiments.networks.own import PROGRAM, open_own
from experiments.networks.registry import rebuild
from experiments.training.store import Trained, check_base, folder_of, is_finished, list_trained, load_trained, trained_task
from mechanisms.runs.files import RunError, load, rebuilt
from mechanisms.training.devices import find_device
from mechanisms.training.noise import seeded
from mechanisms.training.state import WEIGHTS

_ORANGE = "orange text: the prediction is wrong"
_BRIGHT = 0.99  # quantile of a map's values that is as bright as any: single pixels stand out too far


def explain(options: Options) -> Figure:
    """Heat maps of a classifier of the run; of MaskTune with what it was before, and the masks.

    Raises:
        UserError: for classifiers, rules, shifts or images that are not there; for a network without maps; for a MaskTune
            whose ERM has been trained anew since.
    """
    device = find_device(options.device)
    kind = _algorithm(options)
    trained = load_trained(options.run, kind.name, options.seed_of, options.rule, device)
    task = trained_task(options.run, trained)
    looker = _Looker(task, _images(task, options), options)
    images, notes, panels = looker.images, [_ORANGE], [looker.input()]
    if kind is MaskTune:
        before = load_trained(options.run, "erm", options.seed_of, "last", device)
        check_base(options.run, trained, before)
        masks, seen = _masks(options, trained, before.network, images)
        earlier = trained.description["settings"]["iterations"] - 1
        pixels = masked(images, masks).batch(slice(None))["image"]
        lines = [[f"{count} pixels dropped" if count else "nothing to drop"] for count in masks.counts.tolist()]
        panels += [looker.heat(seen, f"before\niteration {earlier}" if earlier else "before\nERM"),
                   Panel("masked\nas for fine-tuning", pixels, lines, outline=masks.dropped),
                   looker.heat(trained.network, "after\nMaskTune")]
        notes[0] += "; orange line: dropped, black to the network"
    else:
        if kind.name != "erm" and is_finished(options.run, "erm", options.seed_of):
            erm = load_trained(options.run, "erm", options.seed_of, options.rule, device)
            panels.append(looker.heat(erm.network, "ERM"))
        panels.append(looker.heat(trained.network, kind.title))
    notes += looker.notes(trained.network, f"weights selected by: {options.rule}; ")
    title = f"{kind.title}, seed {options.seed_of}: {looker.method.title}, {_where(task, options)}"
    return explanation_figure(panels, title, notes, scale=looker.scale, signed=looker.method.signed)


def explain_own(options: Options) -> Figure:
    """Heat maps of a classifier from the user's file, on the run's data set or, without a run, on that of the flags.

    Raises:
        UserError: for what :func:`experiments.networks.own.open_own` refuses; for an exported program, whose layers are
            no longer there.
    """
    if Path(options.classifier).suffix == PROGRAM:
        raise RunError(f"--classifier {options.classifier}: an exported program has no layers that could be looked into; give "
                       "file.py:build and --weights")
    task = task_of(options.data.open()) if options.run is None else trained_task(options.run)
    own = open_own(options.classifier, task, options.weights, device=find_device(options.device), outputs=options.outputs)
    looker, network = _Looker(task, _images(task, options), options), own.module()
    panels = [looker.input(), looker.heat(network, own.name)]
    title = f"{own.name}: {looker.method.title}, {_where(task, options)}"
    return explanation_figure(panels, title, [_ORANGE, *looker.notes(network)], scale=looker.scale, signed=looker.method.signed)


# -------------------------------------------------------------------------------------------------------- what is looked at
def _algorithm(options: Options) -> type[Algorithm]:
    """The one that is asked for, or MaskTune if the run has it, or the last that it has of that seed.

    Raises:
        RunError: for an unknown one.
    """
    there = [name for name, seed in list_trained(options.run) if seed == options.seed_of]
    if options.algorithm and spelled(options.algorithm) not in ALGORITHMS:
        raise RunError(f"unknown algorithm {options.algorithm!r}; {options.run} has {', '.join(there) or 'none'}")
    return algorithm(options.algorithm or (there[-1] if there and MaskTune.name not in there else MaskTune.name))


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
        network = rebuilt(folder / stage_name(number) / WEIGHTS, partial(rebuild, state), state.get("weights"))
        networks.append(network.to(next(before.parameters()).device).eval())
    if options.split == "train" and not options.shift:
        if (used := load_masks(folder / f"masks-{settings.iterations}.pt")) is None:
            raise RunError(f"{folder} has no masks-{settings.iterations}.pt, which masktune trained with; train it again: "
                           f"python -m experiments.train --run {shlex.quote(str(options.run))} --algorithm masktune --overwrite")
        return Masks(used.dropped[images.attributes["row"]], used.blank[images.attributes["row"]]), networks[-1]
    masks = None
    for number, network in enumerate(networks, 1):
        masks = next_masks(network, images, settings, options.seed_of, number, masks)
    return masks, networks[-1]


# -------------------------------------------------------------------------------------------------------- panels
class _Looker:
    """Panels of some images, by one method, with the foreground where it is known.

    Where it is under a shift is not known: masks are those of the images as observed.
    """

    def __init__(self, task: Task, images: Split, options: Options) -> None:
        self.task, self.images, self.layer = task, images, options.layer
        self.method: Attribution = attribution(options.method)
        self.pixels = images.batch(slice(None))["image"]
        self.known = None if options.shift else foreground(task, options.split, images.attributes["row"])
        self.outline: Tensor | None = None
        if self.known is not None:
            self.outline = torch.zeros(self.pixels[:, 0].shape, dtype=torch.bool)
            self.outline[self.known.rows] = self.known.masks

    def input(self) -> Panel:
        """The images, with the attributes that matter."""
        shown, values = (self.task.label, *self.task.spurious), self.images.attributes
        lines = [[f"{v.name} {written(v, values[v.name][row], unit=True)}" for v in shown] for row in range(len(self.images))]
        return Panel("image", self.pixels, lines, foreground=self.outline)

    def heat(self, network: nn.Module, heading: str) -> Panel:
        """The images under a network's maps, with its predictions, and the share of each map that is inside the foreground."""
        there = self.pixels.to(next(network.parameters()).device)
        maps = self.method(network, there, layer=self.layer).cpu()
        with torch.no_grad(), evaluating(network):
            probabilities = network(there).float().softmax(1).cpu()
        wrong = probabilities.argmax(1) != self.images.attributes[self.task.label.name]
        lines = _told(probabilities, self.task.label.classes, maps)
        if self.known is not None:
            shares = scores(maps[self.known.rows], self.known.masks)["focus_share"].tolist()
            for row, share in zip(self.known.rows.tolist(), shares, strict=True):
                lines[row].append(f"{100 * share:.0f} % inside")
        shown = maps if self.method.layered else _brightened(maps)
        return Panel(heading, self.pixels, lines, shown, foreground=self.outline, wrong=wrong)

    def notes(self, network: nn.Module, begun: str = "") -> list[str]:
        layer = self.method.layer_of(network, self.layer)
        told = [f"{begun}{self.method.title}" + (f" of {layer}" if layer else "")]
        if self.known is not None:
            told.append(f"blue line: the foreground; % inside: its share of the squared map; it is {self._area()} % of the images")
            told.append("maps are of the predicted class; the focus in tables of experiments.robustness is of each image's own class")
        return told

    @property
    def scale(self) -> str:
        """What the heat is, in words."""
        if self.method.name == "saliency":
            return "how much the predicted class's logit changes with the pixel, in each image"
        return f"evidence for {'and against ' if self.method.signed else ''}the predicted class, in each image"

    def _area(self) -> str:
        return f"{100 * float(self.known.masks.float().mean()):.0f}"


def _brightened(maps: Tensor) -> Tensor:
    """Each map in [-1, 1], its hundredth of greatest size being ±1."""
    size = maps.abs().flatten(1)
    most = size.quantile(_BRIGHT, 1)
    most = torch.where(most > 0, most, size.amax(1))[:, None, None]
    return (maps / most.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(-1, 1)


def _told(probabilities: Tensor, classes: Sequence[str], heat: Tensor) -> list[list[str]]:
    """The prediction, and a word where a map is empty."""
    lines = prediction_lines(probabilities, classes)
    return [[*line, "no evidence found"] if not row.any() else line for line, row in zip(lines, heat, strict=True)]

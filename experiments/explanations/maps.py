"""Panels of some images: as they are, and under the heat maps of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from datasets.base import Split
from datasets.task import Task
from dscm.figures.style import written
from experiments.attribution.focus import foreground, scores
from experiments.attribution.methods import Attribution
from experiments.explanations.figure import Panel, prediction_lines
from experiments.networks.base import evaluating

_BRIGHT = 0.99  # quantile of a map's values that is as bright as any: single pixels stand out too far


class HeatMaps:
    """Panels of some images by one method of attribution, with the foreground where it is known.

    Where it is under a shift is not known.

    Args:
        images: rows of one split, with their ``row``.
        layer: whose maps are read, by methods that read any; the network's own if empty.
        shifted: whether they are not as observed.
    """

    def __init__(self, task: Task, images: Split, method: Attribution, layer: str = "", shifted: bool = False) -> None:
        self.task, self.images, self.method, self.layer = task, images, method, layer
        self.pixels = images.batch(slice(None))["image"]
        self.foreground = None if shifted else foreground(task, images.name, images.attributes["row"])
        self.outline: Tensor | None = None
        if self.foreground is not None:
            self.outline = torch.zeros(self.pixels[:, 0].shape, dtype=torch.bool)
            self.outline[self.foreground.rows] = self.foreground.masks

    def input(self) -> Panel:
        """The images, with the attributes that matter."""
        shown, values = (self.task.label, *self.task.spurious), self.images.attributes
        lines = [[f"{v.name} {written(v, values[v.name][row], unit=True)}" for v in shown] for row in range(len(self.images))]
        return Panel("image", self.pixels, lines, foreground=self.outline)

    def heat(self, network: nn.Module, heading: str) -> Panel:
        """The images under a network's maps, with its predictions, and the share of each map that is inside the foreground."""
        pixels = self.pixels.to(next(network.parameters()).device)
        maps = self.method(network, pixels, layer=self.layer).cpu()
        with torch.no_grad(), evaluating(network):
            probabilities = network(pixels).float().softmax(1).cpu()
        wrong = probabilities.argmax(1) != self.images.attributes[self.task.label.name]
        lines = captions(probabilities, self.task.label.classes, maps)
        if self.foreground is not None:
            shares = scores(maps[self.foreground.rows], self.foreground.masks)["focus_share"].tolist()
            for row, share in zip(self.foreground.rows.tolist(), shares, strict=True):
                lines[row].append(f"{100 * share:.0f} % inside")
        shown = maps if self.method.layered else brightened(maps)
        return Panel(heading, self.pixels, lines, shown, foreground=self.outline, wrong=wrong)

    def notes(self, network: nn.Module, begun: str = "") -> list[str]:
        """What stands under the picture: the method, the layer it reads, and what the foreground's line means."""
        layer = self.method.layer_of(network, self.layer)
        notes = [f"{begun}{self.method.title}" + (f" of {layer}" if layer else "")]
        if self.foreground is not None:
            area = 100 * float(self.foreground.masks.float().mean())
            notes.append(f"blue line: the foreground; % inside: its share of the squared map; it is {area:.0f} % of the images")
            notes.append("maps are of the predicted class; the focus in tables of experiments.robustness is of each image's own class")
        return notes

    @property
    def scale(self) -> str:
        """What the heat is, in words."""
        if self.method.name == "saliency":
            return "how much the predicted class's logit changes with the pixel, in each image"
        return f"evidence for {'and against ' if self.method.signed else ''}the predicted class, in each image"


def brightened(maps: Tensor) -> Tensor:
    """Each map in [-1, 1], its hundredth of greatest size being ±1."""
    size = maps.abs().flatten(1)
    most = size.quantile(_BRIGHT, 1)
    most = torch.where(most > 0, most, size.amax(1))[:, None, None]
    return (maps / most.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(-1, 1)


def captions(probabilities: Tensor, classes: Sequence[str], maps: Tensor) -> list[list[str]]:
    """Lines under each image: the prediction, and a word where a map is empty."""
    lines = prediction_lines(probabilities, classes)
    return [[*line, "no evidence found"] if not row.any() else line for line, row in zip(lines, maps, strict=True)]

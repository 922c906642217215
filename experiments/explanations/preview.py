"""What ``experiments.preview`` draws: images in rows, and in columns what each augmenter makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.base import with_columns
from datasets.options import DataOptions
from datasets.schema import Variable
from datasets.task import Task, task_of
from datasets.words import listed
from dscm.figures.style import check_format, save_figure, written
from dscm.model import DSCM
from experiments.algorithms.registry import spelled
from experiments.augmenters.base import Augmenter
from experiments.augmenters.counterfactual import Tile
from experiments.augmenters.ready import ready_images
from experiments.augmenters.regions import inside, rectangles, strips
from experiments.augmenters.registry import KINDS
from experiments.augmenters.registry import augmenter as build
from experiments.explanations.figure import Panel, explanation_figure
from experiments.explanations.options import ImageChoice, numbered
from experiments.stress.stresses import Stress, model_images, true_images
from experiments.training.counterfactuals import check_model
from experiments.training.store import load_trained, trained_task
from mechanisms.runs.files import RunError
from mechanisms.training.devices import find_device
from mechanisms.training.noise import seeded

_POOL = 64  # images that an augmenter is given at least, as in a batch: some take their background from another image
_ALL = "all"
_FLAGS = {"counterfactual": "--cf", "factual": "--factual"}


def preview(out: Path, source: Path | DataOptions, choice: ImageChoice, *, cf: str = "all", factual: str = "all", **given: Any) -> Path:
    """A row for each image: as it is, its mask, and what every augmenter that is asked for makes of it. The picture's path.

    Args:
        cf, factual: names of augmenters with commas between; ``all`` that have what they need, or ``none``.
        source, choice, given: see :func:`open_batch`.

    Raises:
        UserError: for unknown augmenters, those that lack what they need, a data set without masks, rows that are not there.
    """
    check_format(out)
    return save_figure(preview_figure(open_batch(source, choice, **given), {"counterfactual": cf, "factual": factual}), out)


def preview_figure(batch: AugmentedBatch, names: Mapping[str, str]) -> Figure:
    """The picture of :func:`preview`; ``names``: kind of augmenter → which ones."""
    augmenters, notes = [], ["orange line: the foreground's mask; blue: its bounding rectangle, which --cf fills"]
    for kind, flag in _FLAGS.items():
        usable, lacking = batch.wanted(kind, names[kind])
        augmenters += usable
        notes += [f"left out of {flag} all: {name}, which needs {what}" for name, what in lacking.items()]
    panels = [*batch.given(), *(batch.panel(each) for each in augmenters)]
    return explanation_figure(panels, f"{batch.split} images of {batch.task.dataset.title}, seed {batch.seed}", notes)


def open_batch(source: Path | DataOptions, choice: ImageChoice, *, label: str = "", algorithm: str = "erm", seed_of: int = 0,
               ready: Path | None = None, model: Path | None = None, truth: bool = False, device: str = "auto") -> AugmentedBatch:
    """Images of a data set, or of that of a run, whose classifier is then there to be misled.

    Args:
        label: attribute that is to be classified; the data set's own if empty.
        algorithm, seed_of: whose classifier of the run.
        ready, model, truth: see :class:`AugmentedBatch`.
    """
    device = find_device(device)
    if isinstance(source, DataOptions):
        task, network = task_of(source.open(), label), None
    else:
        trained = load_trained(source, spelled(algorithm), seed_of, device=device)
        task, network = trained_task(source, trained), trained.network
    return AugmentedBatch(task, choice, network, ready, model, truth, device)


class AugmentedBatch:
    """Images, and what augmenters are given beside them.

    Args:
        network: a classifier to mislead.
        ready: folder of in-painted images.
        model: run folder of a DSCM, which makes the images of augmenters that want a causal model; with ``truth`` the true process
            makes them.

    Attributes:
        count: how many images are shown.
        rows: of the split; the first ``count`` of them are shown, the others are at random.

    Raises:
        RunError: for a data set without masks.
        UserError: for rows that are not there.
    """

    def __init__(self, task: Task, choice: ImageChoice, network: nn.Module | None = None, ready: Path | None = None,
                 model: Path | None = None, truth: bool = False, device: torch.device | str = "cpu") -> None:
        self.task, self.network, self.folder, self.model, self.truth, self.device = task, network, ready, model, truth, device
        self.split, self.seed = choice.split, choice.seed
        task.check_masks("experiments.preview")
        split = task.dataset.split(choice.split)
        if (masks := task.masks(choice.split)) is None:
            why = f": {why}" if (why := task.dataset.masks_missing(choice.split)) else ""
            raise RunError(f"{task.dataset.title} has masks of its train split, but none of {choice.split}; take --split train{why}")
        wanted = numbered(choice.rows, len(split), choice.split)
        drawn = [row for row in torch.randperm(len(split), generator=seeded(choice.seed)).tolist() if row not in wanted]
        self.count = len(wanted) or min(choice.count, len(split))
        self.rows = torch.tensor([*wanted, *drawn])[: max(self.count, _POOL)]
        self.batch = with_columns(split, mask=masks).batch(self.rows)
        self.labels = self.batch[task.label.name]

    # ------------------------------------------------------------------------------------------------ what there is
    def wanted(self, kind: str, names: str) -> tuple[list[Augmenter], dict[str, str]]:
        """The augmenters that a flag names; of ``all``, those that have what they need, and what the others lack, by name.

        Raises:
            RunError: for an unknown one; for one that is named, but lacks something.
        """
        named = listed(names, _FLAGS[kind])
        everything = named == [_ALL]
        augmenters = [each for name in (KINDS[kind] if everything else named) if (each := build(kind, name)) is not None]
        lacking = {each.name: what for each in augmenters if (what := self.lacking(each))}
        if lacking and not everything:
            name, what = next(iter(lacking.items()))
            raise RunError(f"{_FLAGS[kind]} {name} needs {what}")
        return [each for each in augmenters if each.name not in lacking], lacking

    def lacking(self, augmenter: Augmenter) -> str:
        """What an augmenter needs that was not given, with the flag that gives it; empty if nothing."""
        if "network" in augmenter.needs and self.network is None:
            return "a classifier to mislead: --run RUN, with --algorithm"
        if "ready" not in augmenter.needs:
            return ""
        if "masks" in augmenter.needs:
            return "" if self.folder else "in-painted images: --ready DIR"
        if self.dscm is None and not self.truth:
            return "what makes counterfactuals: --model RUN, or --truth"
        graph, settable = self.task.dataset.graph, [v.name for v in self.intervened(augmenter)]
        if not settable:
            return f"a spurious attribute, of which {self.task.dataset.title} names none"
        if not augmenter.keeps_label and self.task.label.name not in [v.name for v in graph.parents("image")]:
            return (f"a label that is itself a cause of the image; do({self.task.label.name}) in {self.task.dataset.title} leaves the "
                    "foreground as it is")
        if self.truth and not self.task.dataset.has_truth(settable):
            return f"true images under do({', '.join(settable)}), which {self.task.dataset.title} has not: --model RUN instead of --truth"
        return ""

    def intervened(self, augmenter: Augmenter) -> tuple[Variable, ...]:
        """Which variables a causal model is to set: the spurious ones where the label stays, else the label."""
        return self.task.spurious if augmenter.keeps_label else (self.task.label,)

    @cached_property
    def dscm(self) -> DSCM | None:
        """The model of the run, loaded when it is first needed; None without one."""
        if self.model is None:
            return None
        dscm = DSCM.load(self.model, self.device)
        check_model(self.model, dscm, self.task.dataset)
        return dscm

    # ------------------------------------------------------------------------------------------------ columns
    def given(self) -> list[Panel]:
        """The images and their masks."""
        count, shown = self.count, (self.task.label, *self.task.spurious)
        images, masks = self.batch["image"][:count], self.batch["mask"][:count]
        facts = [[f"{v.name} {written(v, self.batch[v.name][row], unit=True)}" for v in shown] for row in range(count)]
        shares = [[f"{100 * float(mask.float().mean()):.0f} % of pixels" if mask.any() else "no foreground"] for mask in masks]
        boxes = inside(rectangles(masks), *masks.shape[1:])
        return [Panel("image", images, facts), Panel("mask", images, shares, outline=masks, foreground=boxes)]

    def panel(self, augmenter: Augmenter) -> Panel:
        """What an augmenter makes of the images, and what label it gives them."""
        count, classes = self.count, self.task.label.classes
        used = slice(count if augmenter.needs != {"masks"} else None)  # networks and models are slow, and look at one image at a time
        images, masks, labels = (value[used].to(self.device) for value in (self.batch["image"], self.batch["mask"], self.labels))
        context = {"network": self.network, "ready": self.ready(augmenter)}
        place = [*KINDS].index(augmenter.kind), [*KINDS[augmenter.kind]].index(augmenter.name)  # random numbers of each column's own
        new = augmenter(images, masks, labels, seeded(self.seed, *place), **context)[:count].cpu()
        lines = [[f"{'' if augmenter.keeps_label else 'not '}{classes[int(label)]}"] for label in self.labels[:count]]
        for line, image, before in zip(lines, new, self.batch["image"], strict=False):
            line += ["as it is"] * torch.equal(image, before)
        if isinstance(augmenter, Tile):
            for line, (_, begin, end) in zip(lines, strips(rectangles(self.batch["mask"][:count]), *new.shape[2:]).tolist(), strict=True):
                line += ["no strip: grey"] * (begin == end)
        return Panel(f"{_FLAGS[augmenter.kind]} {augmenter.name}\n{replacement(augmenter)}", new, lines)

    def ready(self, augmenter: Augmenter) -> Tensor | None:
        """Images that were made before, or are made now by the model or the true process, of the rows that are shown."""
        if "ready" not in augmenter.needs:
            return None
        rows = self.rows[: self.count]
        if "masks" in augmenter.needs:
            shape = self.task.dataset.schema.image.shape
            files = ready_images(self.folder, self.split, len(self.task.dataset.split(self.split)), shape)
            return torch.stack([torch.as_tensor(files[int(row)]) for row in rows])
        generator, do = seeded(self.seed, 1), {}
        for variable in self.intervened(augmenter):
            if augmenter.keeps_label:
                training = self.task.dataset.split("train").attributes[variable.name]
                do[variable.name] = training[torch.randint(len(training), (len(rows),), generator=generator)]
            else:
                further = torch.randint(1, self.task.classes, (len(rows),), generator=generator)
                do[variable.name] = (self.labels[: len(rows)] + further) % self.task.classes
        stress = Stress(f"do({', '.join(do)})", "", "", rows, do)
        if self.dscm is None:
            return true_images(self.task, stress, self.split)
        return model_images(self.dscm, self.task, stress, self.split, self.seed)


def replacement(augmenter: Augmenter) -> str:
    """What an augmenter replaces, and by what, in words."""
    part = "whole image" if "masks" not in augmenter.needs else "background" if augmenter.keeps_label else "rectangle"
    return f"{part}: {f'attack ({augmenter.title})' if 'network' in augmenter.needs else augmenter.title}"

"""What ``experiments.preview`` draws: images in rows, and in columns what each augmenter makes of them."""

from __future__ import annotations

from functools import cached_property

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.base import with_columns
from datasets.task import Task, task_of
from datasets.words import listed
from dscm.figures.style import written
from dscm.model import DSCM
from experiments.algorithms.registry import spelled
from experiments.augmenters.base import Augmenter
from experiments.augmenters.counterfactual import Tile
from experiments.augmenters.ready import ready_images
from experiments.augmenters.regions import inside, rectangles, strips
from experiments.augmenters.registry import KINDS, augmenter
from experiments.explanations.figure import Panel, explanation_figure
from experiments.explanations.options import numbered
from experiments.explanations.preview_options import Options
from experiments.stress.stresses import Stress, model_images, true_images
from experiments.training.counterfactuals import check_model
from experiments.training.store import Trained, load_trained, trained_task
from mechanisms.runs.files import RunError
from mechanisms.training.devices import find_device
from mechanisms.training.noise import seeded

_POOL = 64  # images that an augmenter is given at least, as in a batch: some take their background from another image
_ALL = "all"
_FLAGS = {"counterfactual": "--cf", "factual": "--factual"}


def preview(options: Options) -> Figure:
    """A row for each image: as it is, its mask, and what every augmenter that is asked for makes of it.

    Raises:
        UserError: for unknown augmenters, those that lack what they need, a data set without masks, rows that are not there.
    """
    scene = Scene(options)
    columns, notes = [], ["orange line: the foreground's mask; blue: its bounding rectangle, which --cf fills"]
    for kind, flag in _FLAGS.items():
        found, left_out = scene.wanted(kind, getattr(options, flag.removeprefix("--")))
        columns += found
        notes += [f"left out of {flag} all: {name}, which needs {lacking}" for name, lacking in left_out.items()]
    panels = [*scene.given(), *(scene.panel(made) for made in columns)]
    return explanation_figure(panels, f"{options.split} images of {scene.task.dataset.title}, seed {options.seed}", notes)


class Scene:
    """The images, and what augmenters are given beside them.

    Attributes:
        count: how many images are shown.
        rows: of the split; the first ``count`` of them are shown, the others are at random.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.device = options, find_device(options.device)
        self.trained: Trained | None = None
        if options.run is None:
            self.task: Task = task_of(options.data.open(), options.label)
        else:
            self.trained = load_trained(options.run, spelled(options.algorithm), options.seed_of, device=self.device)
            self.task = trained_task(options.run, self.trained)
        self.task.check_masks("experiments.preview")
        split = self.task.dataset.split(options.split)
        if (masks := self.task.masks(options.split)) is None:
            why = f": {why}" if (why := self.task.dataset.masks_missing(options.split)) else ""
            raise RunError(f"{self.task.dataset.title} has masks of its train split, but none of {options.split}; take --split train{why}")
        asked = numbered(options.rows, len(split), options.split)
        drawn = [row for row in torch.randperm(len(split), generator=seeded(options.seed)).tolist() if row not in asked]
        self.count = len(asked) or min(options.count, len(split))
        self.rows = torch.tensor([*asked, *drawn])[: max(self.count, _POOL)]
        self.batch = with_columns(split, mask=masks).batch(self.rows)
        self.labels = self.batch[self.task.label.name]

    # ------------------------------------------------------------------------------------------------ what there is
    def wanted(self, kind: str, names: str) -> tuple[list[Augmenter], dict[str, str]]:
        """The augmenters that a flag names; of ``all``, those that have what they need, and what the others lack, by name.

        Raises:
            RunError: for an unknown one; for one that is named, but lacks something.
        """
        named = listed(names, _FLAGS[kind])
        everything = named == [_ALL]
        found = [made for name in (KINDS[kind] if everything else named) if (made := augmenter(kind, name)) is not None]
        lacking = {made.name: what for made in found if (what := self.lacking(made))}
        if lacking and not everything:
            name, what = next(iter(lacking.items()))
            raise RunError(f"{_FLAGS[kind]} {name} needs {what}")
        return [made for made in found if made.name not in lacking], lacking

    def lacking(self, made: Augmenter) -> str:
        """What an augmenter needs that was not given, with the flag that gives it; empty if nothing."""
        if "network" in made.needs and self.trained is None:
            return "a classifier to mislead: --run RUN, with --algorithm"
        if "ready" not in made.needs:
            return ""
        if "masks" in made.needs:
            return "" if self.options.ready else "in-painted images: --ready DIR"
        if self.dscm is None and not self.options.truth:
            return "what makes counterfactuals: --model RUN, or --truth"
        graph, asked = self.task.dataset.graph, [v.name for v in self.asked(made)]
        if not asked:
            return f"a spurious attribute, of which {self.task.dataset.title} names none"
        if not made.keeps_label and self.task.label.name not in [v.name for v in graph.parents("image")]:
            return (f"a label that is itself a cause of the image; do({self.task.label.name}) in {self.task.dataset.title} leaves the "
                    "foreground as it is")
        if self.options.truth and not self.task.dataset.has_truth(asked):
            return f"true images under do({', '.join(asked)}), which {self.task.dataset.title} has not: --model RUN instead of --truth"
        return ""

    def asked(self, made: Augmenter) -> tuple:
        """Which variables a causal model is to set: the spurious ones where the label stays, else the label."""
        return self.task.spurious if made.keeps_label else (self.task.label,)

    @cached_property
    def dscm(self) -> DSCM | None:
        if self.options.model is None:
            return None
        model = DSCM.load(self.options.model, self.device)
        check_model(self.options.model, model, self.task.dataset)
        return model

    @cached_property
    def network(self) -> nn.Module | None:
        return None if self.trained is None else self.trained.network

    # ------------------------------------------------------------------------------------------------ columns
    def given(self) -> list[Panel]:
        """The images and their masks."""
        count, shown = self.count, (self.task.label, *self.task.spurious)
        images, masks = self.batch["image"][:count], self.batch["mask"][:count]
        facts = [[f"{v.name} {written(v, self.batch[v.name][row], unit=True)}" for v in shown] for row in range(count)]
        shares = [[f"{100 * float(mask.float().mean()):.0f} % of pixels" if mask.any() else "no foreground"] for mask in masks]
        boxes = inside(rectangles(masks), *masks.shape[1:])
        return [Panel("image", images, facts), Panel("mask", images, shares, outline=masks, foreground=boxes)]

    def panel(self, made: Augmenter) -> Panel:
        """What an augmenter makes of the images, and what label it gives them."""
        count, classes = self.count, self.task.label.classes
        used = slice(count if made.needs != {"masks"} else None)  # networks and models are slow, and look at one image at a time
        images, masks, labels = (value[used].to(self.device) for value in (self.batch["image"], self.batch["mask"], self.labels))
        context = {"network": self.network, "ready": self.ready(made)}
        place = [*KINDS].index(made.kind), [*KINDS[made.kind]].index(made.name)  # random numbers of each column's own
        new = made(images, masks, labels, seeded(self.options.seed, *place), **context)[:count].cpu()
        lines = [[f"{'' if made.keeps_label else 'not '}{classes[int(label)]}"] for label in self.labels[:count]]
        for line, image, before in zip(lines, new, self.batch["image"], strict=False):
            line += ["as it is"] * torch.equal(image, before)
        if isinstance(made, Tile):
            for line, (_, begin, end) in zip(lines, strips(rectangles(self.batch["mask"][:count]), *new.shape[2:]).tolist(), strict=True):
                line += ["no strip: grey"] * (begin == end)
        return Panel(f"{_FLAGS[made.kind]} {made.name}\n{replacement(made)}", new, lines)

    def ready(self, made: Augmenter) -> Tensor | None:
        """Images that were made before, or are made now by the model or the true process, of the rows that are shown."""
        if "ready" not in made.needs:
            return None
        options, rows = self.options, self.rows[: self.count]
        if "masks" in made.needs:
            shape = self.task.dataset.schema.image.shape
            files = ready_images(options.ready, options.split, len(self.task.dataset.split(options.split)), shape)
            return torch.stack([torch.as_tensor(files[int(row)]) for row in rows])
        generator, do = seeded(options.seed, 1), {}
        for variable in self.asked(made):
            if made.keeps_label:
                training = self.task.dataset.split("train").attributes[variable.name]
                do[variable.name] = training[torch.randint(len(training), (len(rows),), generator=generator)]
            else:
                further = torch.randint(1, self.task.classes, (len(rows),), generator=generator)
                do[variable.name] = (self.labels[: len(rows)] + further) % self.task.classes
        stress = Stress(f"do({', '.join(do)})", "", "", rows, do)
        if self.dscm is None:
            return true_images(self.task, stress, options.split)
        return model_images(self.dscm, self.task, stress, options.split, options.seed)


def replacement(made: Augmenter) -> str:
    """What an augmenter replaces, and by what, in words."""
    part = "whole image" if "masks" not in made.needs else "background" if made.keeps_label else "rectangle"
    return f"{part}: {f'attack ({made.title})' if 'network' in made.needs else made.title}"

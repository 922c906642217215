"""The rows that a task's classifiers are trained and selected on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from datasets.base import LazyImages, Split
from datasets.files.images import kept
from datasets.task import Sizes, Task
from experiments.networks.base import Network
from experiments.networks.features import with_features
from experiments.training.selection import selection_split, shifts_of
from experiments.training.study import NoisyBoxes, Study, kept_rows
from mechanisms.anticausal.decorrelate import chosen
from mechanisms.runs.files import RunError
from mechanisms.training.devices import find_device

Source = Callable[[], Tensor]


class Rows:
    """The rows that a task's classifiers are trained and selected on; shared by all algorithms and seeds of a command.

    Args:
        source: makes the counterfactuals of the training split, uint8 ``(N, M, C, H, W)``, when they are first asked for.
        other_class: makes those of another class, of the same shape; see :mod:`experiments.training.counterfactuals`.
        made_by: what makes them, in a word or two; part of what tells trainings apart.
        study: what training is given of the split's rows and masks; selection looks at all that it would.

    Attributes:
        kept: the rows that are trained on, by their numbers in the split; None for all.
        trained: folders of what was trained since, which is not to be overwritten again.
    """

    def __init__(self, task: Task, source: Source | None = None, made_by: str = "", study: Study = Study(),
                 other_class: Source | None = None) -> None:
        self.task, self.source, self.made_by, self.study, self.other_class = task, source, made_by, study, other_class
        self.trained: set[Path] = set()
        self._selection: dict[int, Split] = {}
        self._featured: dict[Hashable, list[tuple[Split, Split]]] = {}  # body → pairs of a split and the same with features
        self._warned: set[str] = set()

    @cached_property
    def kept(self) -> Tensor | None:
        return None if self.study.data_fraction == 1 else kept_rows(len(self.task.split("train")), self.study.data_fraction)

    @cached_property
    def train(self) -> Split:
        """The rows that are trained on.

        Raises:
            RunError: if they are of one class only.
        """
        rows = self.task.split("train")
        left = rows if self.kept is None else chosen(rows, self.kept)
        if len(left.attributes["label"].unique()) < 2:
            raise RunError(f"--data-fraction {self.study.data_fraction} leaves {len(left)} of {len(rows)} training rows, all of one class; "
                           "take more of them")
        return left

    def of_train(self, values: Tensor | LazyImages) -> Tensor | LazyImages:
        """A column of the training split, ``(N, …)``, of the rows that are trained on."""
        return values if self.kept is None else kept(values, self.kept)

    @cached_property
    def masks(self) -> Tensor | LazyImages | None:
        """Of all rows of the training split, as the study gives them."""
        masks = self.task.masks("train")
        if masks is None or self.study.box_noise is None:
            return masks
        boxes = NoisyBoxes(masks, self.study.box_noise)
        return torch.stack([boxes[row] for row in range(len(boxes))]) if isinstance(masks, Tensor) else boxes

    @cached_property
    def counterfactuals(self) -> Tensor | None:
        """Of the training split; None where nothing makes them."""
        return None if self.source is None else self.source()

    @cached_property
    def relabelled(self) -> Tensor | None:
        """Images of another class, of the training split; None where nothing makes them."""
        return None if self.other_class is None else self.other_class()

    def selection(self, count: int) -> Split:
        """See :func:`experiments.training.selection.selection_split`."""
        if count not in self._selection:
            self._selection[count] = selection_split(self.task, count)
        return self._selection[count]

    def featured(self, split: Split, body: Hashable, network: Callable[[], Network], device: str) -> Split:
        """A split of these rows with features in place of images, made once for each ``body``, which ``network()`` has."""
        pairs = self._featured.setdefault(body, [])
        for known, featured in pairs:
            if known is split:
                return featured
        pairs.append((split, with_features(network(), split, find_device(device))))
        return pairs[-1][1]

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(self.task.classes, self.task.environment_count, len(self.task.group_names), len(shifts_of(self.task)))

    def check(self, needs: frozenset[str], name: str, grouped: str, network: type[Network]) -> None:
        """Raises UserError where the data or the network lack what an algorithm needs, before anything is trained.

        Args:
            needs: see :meth:`experiments.algorithms.base.Algorithm.needs_of`.
            name: of the algorithm.
            grouped: the split whose groups it uses, if it needs any.
        """
        name = f"--algorithm {name}"
        if "environments" in needs:
            self.task.check_environments(name)
        if "groups" in needs:
            self.task.check_groups(name)
            self.warn_of_empty_groups(grouped, name)
        if "masks" in needs:
            self.task.check_masks(name)
            self.warn_of_masks(name)
        if "relabelled" in needs:
            self.task.check_relabelling(f"{name} with --cf dscm", "; take a model's factual images instead: --factual dscm --cf none "
                                        "--saliency none --model RUN")
        if ("counterfactuals" in needs and self.source is None) or ("relabelled" in needs and self.other_class is None):
            raise RunError(f"{name} trains on counterfactuals, but nothing makes them: give --model RUN (a trained model), or --truth "
                           "where the data set knows its process")
        if "camera" in needs and not network.cam_layer:
            raise RunError(f"{name} draws class-activation maps, but --network {network.name} has no layer of maps; take --network "
                           "smallcnn")

    def warn_of_empty_groups(self, split: str, needed_by: str) -> None:
        """Say once which groups the split has no rows of: nothing can be learned about these combinations from it."""
        rows = self.train if split == "train" else self.task.split(split)
        counts = torch.bincount(rows.attributes["group"], minlength=len(self.task.group_names))
        if empty := (counts == 0).nonzero().flatten().tolist():
            named = "; ".join(self.task.group_names[g] for g in empty)
            self.warn(f"{needed_by} and others that balance groups learn nothing of those that the {split} split of "
                      f"{self.task.dataset.title} has no rows of: {named}", split)

    def warn_of_masks(self, needed_by: str) -> None:
        """Say once how many masks say nothing: empty, or full. Those that are read one by one are not looked at."""
        if not isinstance(self.masks, Tensor):
            return
        masks = self.of_train(self.masks).flatten(1)
        counts = {"are empty, so that nothing is made of their images": int((~masks.any(1)).sum()),
                  "are full, so that their images have no background": int(masks.all(1).sum())}
        if useless := ", and ".join(f"{count:,} {what}" for what, count in counts.items() if count):
            self.warn(f"of {len(masks):,} training masks that {needed_by} needs, {useless}", "masks")

    def warn(self, message: str, about: str) -> None:
        """Say something once, whoever finds it first."""
        if about not in self._warned and PartialState().is_main_process:
            print(f"warning: {message}", file=sys.stderr)
            self._warned.add(about)


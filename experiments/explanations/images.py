"""The images that are explained: which rows of a split, as observed or under a shift."""

from __future__ import annotations

import torch

from datasets.base import Split
from datasets.task import Task
from experiments.explanations.options import ImageChoice, numbered
from mechanisms.training.noise import seeded, some_of


def chosen_rows(choice: ImageChoice, available: int) -> list[int]:
    """Numbers of the images, of ``available`` ones.

    Raises:
        UserError: for one that is not there.
    """
    return numbered(choice.rows, available, choice.split) or some_of(available, choice.count, choice.seed).tolist()


def chosen_images(task: Task, choice: ImageChoice) -> Split:
    """The images with all their attributes and their ``row``; under a shift they are the true process's."""
    dataset = task.dataset
    split = dataset.split(choice.split)
    index = torch.tensor(chosen_rows(choice, len(split)))
    world = split.batch(index)
    if choice.shift:
        attributes = {name: value for name, value in world.items() if name != "image"}
        world = dataset.true_counterfactual(choice.split, index, task.shifted(choice.shift, attributes, seeded(choice.seed)))
    pixels = (world["image"] * 255).round().to(torch.uint8)
    return Split(choice.split, pixels, {**{v.name: world[v.name] for v in dataset.graph.attributes}, "row": index})


def in_words(task: Task, choice: ImageChoice) -> str:
    """``test images of spuriousmnist under the shift 'raw'``."""
    return f"{choice.split} images of {task.dataset.title}" + (f" under the shift {choice.shift!r}" if choice.shift else "")

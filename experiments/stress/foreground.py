"""What is asked of classifiers where it is known what in an image is the foreground: where do they look, and do they miss it?

Columns of the table of a stress test beside accuracy, of the images as observed: :mod:`experiments.attribution.focus` by one method of
attribution, and :mod:`experiments.stress.ood` against the same images without their foreground.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.task import Task
from experiments.attribution.focus import NONE, Foreground, chance, focus, foreground, images_for, summary
from experiments.attribution.methods import attribution
from experiments.stress.ood import confidence, ood_scores, without_foreground
from mechanisms.training.noise import some_of

Predict = Callable[[Tensor], Tensor]
Read = Callable[[Tensor], Tensor]
_AT_ONCE = 512  # images that are read at once
_ROWS = 10**6 + 2  # the stream of which images focus is measured on


@dataclass(frozen=True)
class ForegroundTest:
    """Figures about the foreground.

    Attributes:
        values: metric → value, of each classifier in the order given.
        floor: the same of answering always alike and looking nowhere.
        notes: how the figures came about, a sentence each.
    """

    values: tuple[Mapping[str, float], ...]
    floor: Mapping[str, float]
    notes: tuple[str, ...]


def foreground_test(task: Task, split: str, index: Tensor, networks: Sequence[tuple[str, nn.Module | None]],
                    predict: Sequence[Predict], method: str, fill: str, seed: int = 0) -> ForegroundTest | None:
    """The figures of all classifiers on rows ``index (B,)`` of a split; None where a data set knows no foreground, or nothing is asked.

    Where it could, and there is none to go by, there are no figures, and a note says why.

    Args:
        networks: name and network of every classifier; None for one that cannot be looked into.
        predict: of every classifier, images ``(B, C, H, W)`` → logits ``(B, K)`` on the CPU.
        method: of :data:`experiments.attribution.methods.ATTRIBUTIONS`, or ``none``.
        fill: of :data:`experiments.augmenters.registry.COUNTERFACTUAL`, or ``none``.

    Raises:
        RunError: for an unknown method or fill; see also :func:`experiments.attribution.focus.focus`.
    """
    if {method, fill} == {NONE}:
        return None
    if (foregrounds := foreground(task, split, index)) is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # has been said when they were read
            no_masks = task.masks(split) is None
        why = task.dataset.masks_missing(split) if no_masks else "every mask of these images is of nothing, or of the whole image"
        return ForegroundTest(({},) * len(networks), {}, (f"No table of foregrounds: {why}.",)) if why else None
    data = task.dataset.split(split)
    labels = data.attributes[task.label.name][index[foregrounds.rows]]
    values: list[dict[str, float]] = [{} for _ in networks]
    left = f" ({foregrounds.without:,} others have none, or nothing else)" if foregrounds.without else ""
    area = int(foregrounds.masks.sum()) / foregrounds.masks.numel()
    notes, floor = [f"The foreground of {len(labels):,} images is known{left}; it is {100 * area:.1f} % of their area."], {}

    def read(rows: Tensor) -> Tensor:
        return data.batch(index[foregrounds.rows[rows]])["image"]

    if method != NONE:
        floor |= _focus(networks, read, labels, foregrounds, method, seed, values, notes)
    if fill != NONE:
        floor |= _ood(predict, read, labels, foregrounds, fill, seed, values, notes)
    return ForegroundTest(tuple(values), floor, tuple(notes))


def _focus(networks: Sequence[tuple[str, nn.Module | None]], read: Read, labels: Tensor, foregrounds: Foreground, method: str, seed: int,
           values: list[dict[str, float]], notes: list[str]) -> dict[str, float]:
    """Fills in ``values`` and ``notes``, by some of the images at random; the floor."""
    kind, count, errors, blind = attribution(method), images_for(method, len(labels)), [], []
    rows = some_of(len(labels), count, seed, _ROWS)
    images, labels, masks = read(rows), labels[rows], foregrounds.masks[rows]
    for (name, network), figures in zip(networks, values, strict=True):
        if network is None or (kind.layered and not getattr(network, "cam_layer", "")):
            blind.append(name)
            continue
        device = next(network.parameters()).device
        focused = summary(focus(network, images.to(device), labels.to(device), masks, method))
        figures.update({metric: mean for metric, (mean, _) in focused.items()})
        errors += [error for _, error in focused.values() if error is not None]
    spread = f", which add a standard error of up to {100 * max(errors):.1f} points" if errors else ""
    notes.append(f"Focus: {kind.title} of each image's own class, on {count:,} images{spread}; a map that is the same everywhere has the "
                 "figures of chance, in the last row. Maps of experiments.explain are of the predicted class.")
    if blind:
        without = "no layer of maps to look into" if kind.layered else "no network to look into"
        notes.append(f"No focus of {', '.join(dict.fromkeys(blind))}: {without}.")
    return {metric: mean for metric, (mean, _) in summary(chance(masks)).items()}


def _ood(predict: Sequence[Predict], read: Read, labels: Tensor, foregrounds: Foreground, fill: str, seed: int,
         values: list[dict[str, float]], notes: list[str]) -> dict[str, float]:
    """Fills in ``values`` and ``notes``; the floor."""
    inside, outside = ([[] for _ in predict] for _ in range(2))
    for k, rows in enumerate(torch.arange(len(labels)).split(_AT_ONCE)):
        images = read(rows)
        gone = without_foreground(images, foregrounds.masks[rows], labels[rows], fill, seed, k)
        for answer, present, absent in zip(predict, inside, outside, strict=True):
            present.append(confidence(answer(images)))
            absent.append(confidence(answer(gone)))
    for figures, present, absent in zip(values, inside, outside, strict=True):
        figures.update(ood_scores(torch.cat(present), torch.cat(absent)))
    notes.append(f"No foreground: the same images with its bounding rectangle replaced ({fill}); they are told apart by the maximum "
                 "softmax probability, the images as they are being the positives.")
    same = torch.zeros(len(labels))
    return ood_scores(same, same)

"""How well predictors read images that they have not seen: as observed, and with independent causes.

An evaluator that errs little on observed images and much on decorrelated ones reads one cause off another; it would
blame a counterfactual for its own mistake. Both errors are printed, beside those of an answer that looks at no image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datasets.base import Split
from datasets.schema import Variable
from mechanisms.anticausal.class_scores import class_scores
from mechanisms.anticausal.decorrelate import Decorrelated
from mechanisms.anticausal.model import Predictors

TEST = "test.json"
_APART = 1.5  # errors on decorrelated images this many times those on observed ones are told, if it is no accident
_BATCH = 256

Figures = dict[str, dict[str, float | None]]  # {metric: {value, error}}


def figures(variable: Variable, target: Tensor, predicted: Tensor, probabilities: Tensor | None = None) -> Figures:
    """Errors of one attribute over ``(N,)`` images, each with its standard error where it is a mean over images.

    Continuous: ``mae`` in physical units. Discrete: ``accuracy``, ``macro_f1`` and ``auroc`` (one class against the
    rest, mean over the classes that occur; ``None`` where only one does), of ``probabilities`` ``(N, K)``.
    """
    if variable.continuous:
        return {"mae": _mean((predicted - target).abs())}
    scores = class_scores(probabilities, target)
    return {"accuracy": _mean(scores.correct), "macro_f1": {"value": scores.f1, "error": None},
            "auroc": {"value": scores.auroc, "error": None}}


def _mean(each: Tensor) -> dict[str, float | None]:
    each = each.double()
    return {"value": float(each.mean()), "error": float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None}


def blind(variable: Variable, count: int) -> tuple[Tensor, Tensor | None]:
    """Predictions that look at no image: the training mean, or the majority class with the training frequencies."""
    statistics = variable.statistics
    if variable.continuous:
        return torch.full((count,), statistics.mean), None
    counts = torch.tensor(statistics.counts, dtype=torch.float)
    return counts.argmax().expand(count), (counts / counts.sum()).expand(count, -1)


@torch.no_grad()
def read(model: Predictors, split: Split) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Predictions ``(N,)`` and, where discrete, probabilities ``(N, K)`` of every attribute for a whole split, on the CPU."""
    device, found = next(model.parameters()).device, {name: ([], []) for name in model.names}
    for start in range(0, len(split), _BATCH):
        images = split.batch(slice(start, start + _BATCH))["image"].to(device)
        predicted, probabilities, _ = model.read(images)
        for name, (values, chances) in found.items():
            values.append(predicted[name].cpu())
            chances += [probabilities[name].cpu()] if name in probabilities else []
    return {name: (torch.cat(values), torch.cat(chances) if chances else None) for name, (values, chances) in found.items()}


def score(model: Predictors, observed: Split, independent: Decorrelated) -> dict[str, Any]:
    """Errors on the test split as observed and with independent causes, each beside its no-information baseline.

    Returns plain values: ``attributes[name]`` has the ``unit`` and, under ``observational``, ``decorrelated`` and
    ``baseline`` (on the decorrelated images), :func:`figures`.
    """
    attributes = {v.name: {"unit": v.unit} for v in model.variables}
    for world, split in (("observational", observed), ("decorrelated", independent.split)):
        found = read(model, split)
        for v in model.variables:
            attributes[v.name][world] = figures(v, split.attributes[v.name], *found[v.name])
            attributes[v.name]["baseline"] = figures(v, split.attributes[v.name], *blind(v, len(split)))
    return {"rows": {"observational": len(observed), "decorrelated": len(independent.split)}, "way": independent.way,
            "effective_size": independent.effective_size,
            "correlation": {"observational": independent.before, "decorrelated": independent.after}, "attributes": attributes}


def report(results: Mapping[str, Any]) -> str:
    """The table of :func:`score`, how the images were decorrelated, and what to beware of."""
    rows, correlation = results["rows"], results["correlation"]
    lines = ["| attribute | metric | observational | decorrelated | no information |", "| --- | --- | --- | --- | --- |"]
    for name, parts in results["attributes"].items():
        for metric in parts["observational"]:
            unit = f" ({parts['unit']})" if parts["unit"] and metric == "mae" else ""
            cells = " | ".join(_cell(parts[world][metric]) for world in ("observational", "decorrelated", "baseline"))
            lines.append(f"| {name} | {metric.replace('_', ' ')}{unit} | {cells} |")
    lines.append(f"{rows['observational']} test images as observed (largest correlation of two causes {correlation['observational']:.2f}), "
                 f"{rows['decorrelated']} decorrelated ({correlation['decorrelated']:.2f}): {results['way']}")
    apart = off_distribution(results)
    if apart:
        lines.append(f"off distribution: {', '.join(apart)} read much worse where causes are independent; "
                     "judge no intervention by predictors of these")
    return "\n".join(lines)


def off_distribution(results: Mapping[str, Any]) -> list[str]:
    """Attributes whose error on decorrelated images is over 1.5 times that on observed ones, by over 3 standard errors."""
    found = []
    for name, parts in results["attributes"].items():
        metric = "mae" if "mae" in parts["observational"] else "accuracy"
        (a, s), (b, t) = ((parts[w][metric]["value"], parts[w][metric]["error"] or 0.0) for w in ("observational", "decorrelated"))
        if metric == "accuracy":
            a, b = 1 - a, 1 - b
        if b > _APART * a and b - a > 3 * math.hypot(s, t):
            found.append(name)
    return found


def _cell(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None:
        return "not defined"
    return f"{figure['value']:.4g}" + (f" ± {figure['error']:.2g}" if figure["error"] is not None else "")

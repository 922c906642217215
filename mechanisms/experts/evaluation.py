"""What a trained set of experts achieves on the test split, and the table over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.unpaired import UnpairedDataset
from mechanisms.bookkeeping import METRICS
from mechanisms.checkpoint import MetricsLog
from mechanisms.experts.classifier import accuracy
from mechanisms.experts.metrics import assignment, confusion, over_seeds, specialisation
from mechanisms.experts.model import Experts
from mechanisms.predictor import Predictors

_WON_OUTRIGHT = 0.05  # of the discriminator's loss; at a draw it is 2 log 2 = 1.39
UNITS = {"purity": "", "nmi": "", "hungarian": "", "usage_entropy": "nats", "idle": "experts", "error_transformed": "of 255",
         "error_restored": "of 255", "accuracy_clean": "", "accuracy_transformed": "", "accuracy_restored": ""}


def evaluate(model: Experts, images: Tensor, mechanism: Tensor | None = None, names: tuple[str, ...] = (), clean: Tensor | None = None,
             labels: Tensor | None = None, classifier: Predictors | None = None) -> dict[str, Any]:
    """Figures of experts on images, float in [0, 1] ``(N, C, H, W)``, as far as what they are compared with is known.

    Args:
        mechanism: true mechanism of each image, an index into ``names``, ``(N,)``.
        clean: the images before their mechanism acted, like ``images``.
        labels: of ``classifier``, ``(N,)``.

    Returns:
        ``figures``, numbers by name; errors are mean absolute, of 255. ``confusion``, ``(E, K)``, and ``found``, expert →
        mechanism, of the best one-to-one assignment, where mechanisms are known; ``usage``, the share each expert won.
    """
    restored, winner, _ = model.invert(images)
    restored, winner = restored.cpu(), winner.cpu()
    usage = torch.bincount(winner, minlength=model.config.experts) / len(winner)
    figures: dict[str, float] = {}
    found: dict[str, Any] = {"usage": [round(float(share), 4) for share in usage]}
    if mechanism is not None:
        counts = confusion(winner, mechanism, model.config.experts, len(names))
        figures |= specialisation(counts)
        found |= {"confusion": counts.tolist(), "found": {str(e): names[k] for e, k in assignment(counts).items()}}
    if clean is not None:
        for name, made in (("transformed", images), ("restored", restored)):
            figures[f"error_{name}"] = 255 * float((made - clean).abs().mean())
        if mechanism is not None:
            errors = 255 * (restored - clean).abs().mean((1, 2, 3))
            found["errors"] = {name: round(float(errors[mechanism == k].mean()), 3) for k, name in enumerate(names)
                               if bool((mechanism == k).any())}
    if classifier is not None and clean is not None and labels is not None:
        for name, made in (("clean", clean), ("transformed", images), ("restored", restored)):
            figures[f"accuracy_{name}"] = accuracy(classifier, made, labels)
    return {"figures": figures, **found}


def evaluate_on(model: Experts, dataset: UnpairedDataset, split: str, classifier: Predictors | None) -> dict[str, Any]:
    """:func:`evaluate` on a split of the data set, with all that it knows."""
    rows, clean = dataset.split(split), dataset.clean(split)
    known = "mechanism" in rows.attributes
    label = rows.attributes.get(dataset.label) if dataset.label else None
    return evaluate(model, rows.batch(slice(None))["image"], rows.attributes["mechanism"] if known else None, dataset.mechanisms,
                    None if clean is None else clean.float() / 255, label, classifier)


def warnings_of(folder: Path, usage: list[float]) -> list[str]:
    """What went wrong in a training that ended, each with what to change."""
    found = []
    rows = MetricsLog.read(folder / METRICS)
    if rows and (loss := rows[-1]["valid"]["discriminator"]) < _WON_OUTRIGHT:
        found.append(f"the discriminator has won outright (its loss is {loss:.3f}, at a draw it is 1.386): experts learn nothing from it "
                     "any more. Raise --penalty or --instance-noise, lower --discriminator-width, or add --spectral")
    if idle := [str(e) for e, share in enumerate(usage) if share == 0]:
        found.append(f"experts {', '.join(idle)} win nothing: there are more experts than mechanisms, or some expert serves two "
                     "(raise --balance or --temperature, or give --reseed 0.2)")
    return found


def summary(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``metrics.json`` holds: every seed, mean and standard error over them, and the number that collapsed."""
    rows = [result["figures"] for result in results.values()]
    return {"seeds": {str(seed): result for seed, result in results.items()}, "over_seeds": over_seeds(rows) if rows[0] else {},
            "collapsed_means": "Hungarian accuracy below 0.9, or an idle expert although there are no more experts than mechanisms"}


def table(results: Mapping[int, Mapping[str, Any]]) -> str:
    """Figures × seeds in Markdown, with mean ± standard error over seeds."""
    names = list(next(iter(results.values()))["figures"])
    if not names:
        return "Neither mechanisms nor clean images are known, so there is nothing to hold the experts against."
    over = over_seeds([result["figures"] for result in results.values()])
    lines = [["figure", *(f"seed {seed}" for seed in results), "mean ± standard error"]]
    for name in names:
        values = [result["figures"][name] for result in results.values()]
        if name == "collapsed":
            lines.append(["collapsed", *("yes" if value else "no" for value in values), f"{over[name]['count']} of {over[name]['of']}"])
            continue
        error = over[name]["error"]
        lines.append([f"{name.replace('_', ' ')}{f' ({UNITS[name]})' if UNITS[name] else ''}", *(f"{value:.3f}" for value in values),
                      f"{over[name]['mean']:.3f}" + (f" ± {error:.3f}" if error is not None else "")])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])

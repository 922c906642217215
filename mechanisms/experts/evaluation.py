"""What a trained set of experts achieves on the test split, and the table over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.unpaired import UnpairedDataset
from mechanisms.anticausal.model import Predictors
from mechanisms.experts.classifier import accuracy
from mechanisms.experts.metrics import IDLE_BELOW, confusion, over_seeds, specialisation, specialists
from mechanisms.experts.model import Experts
from mechanisms.runs.files import MetricsLog
from mechanisms.runs.tables import markdown
from mechanisms.training.state import METRICS

_WON_OUTRIGHT = 4.0  # of the experts' loss: the discriminator gives what winners make a chance of less than 2 % to be canonical
_WON = (f"the discriminator has won outright (the experts' loss is above {_WON_OUTRIGHT:g}, at a draw it is 0.69): they learn nothing from "
        "it any more. Raise --penalty or --instance-noise, lower --discriminator-width, or add --spectral")
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
        mechanism, of experts that have found one, where mechanisms are known; ``usage``, the share each expert won.
    """
    restored, winner, _ = model.invert(images)
    restored, winner = restored.cpu(), winner.cpu()
    usage = torch.bincount(winner, minlength=model.config.experts) / len(winner)
    figures: dict[str, float] = {}
    found: dict[str, Any] = {"usage": [round(float(share), 4) for share in usage]}
    if mechanism is not None:
        counts = confusion(winner, mechanism, model.config.experts, len(names))
        figures |= specialisation(counts)
        found |= {"confusion": counts.tolist(), "found": {str(e): names[k] for e, k in specialists(counts).items()}}
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


def warn_if_won(means: Mapping[str, float]) -> None:
    """Warns, while experts train, of a discriminator that they cannot reach; ``means`` are those of a validation's terms."""
    if means["experts"] > _WON_OUTRIGHT:
        warnings.warn(f"{_WON}; stop (Ctrl-C) or see whether it passes", stacklevel=2)


def warnings_of(folder: Path, usage: list[float]) -> list[str]:
    """What went wrong in a training that ended, each with what to change."""
    found = []
    rows = MetricsLog.read(folder / METRICS)
    if rows and rows[-1]["valid"]["experts"] > _WON_OUTRIGHT:
        found.append(_WON)
    if idle := [str(e) for e, share in enumerate(usage) if share * len(usage) < IDLE_BELOW]:
        found.append(f"experts {', '.join(idle)} win (almost) nothing: there are more experts than mechanisms, or some expert serves two "
                     "(then train longer, or raise --balance, --reseed or --temperature)")
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
    lines = []
    for name in names:
        values = [result["figures"][name] for result in results.values()]
        if name == "collapsed":
            lines.append(["collapsed", *("yes" if value else "no" for value in values), f"{over[name]['count']} of {over[name]['of']}"])
            continue
        error = over[name]["error"]
        lines.append([f"{name.replace('_', ' ')}{f' ({UNITS[name]})' if UNITS[name] else ''}", *(f"{value:.3f}" for value in values),
                      f"{over[name]['mean']:.3f}" + (f" ± {error:.3f}" if error is not None else "")])
    return markdown(["figure", *(f"seed {seed}" for seed in results), "mean ± standard error"], lines)

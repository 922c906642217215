"""Train experts for one or more seeds, evaluate them, and leave pictures and tables in the run folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from datasets.errors import UserError
from datasets.unpaired import UnpairedDataset, unpaired
from mechanisms.anticausal.model import Predictors
from mechanisms.experts.classifier import classifier
from mechanisms.experts.compare import RESULT, alike, results_of
from mechanisms.experts.competition import Competition
from mechanisms.experts.data import check_apart, unlabelled
from mechanisms.experts.evaluation import evaluate_on, summary, table, warn_if_won, warnings_of
from mechanisms.experts.figures import confusion_figure, curves, grid, write
from mechanisms.experts.metrics import IDLE_BELOW
from mechanisms.experts.model import FOLDER, Experts, folder_of
from mechanisms.experts.options import DEFAULT_STEPS, DEFAULTS, ExpertsConfig, ExpertsData
from mechanisms.runs.files import MetricsLog, read_json, replacing, write_json
from mechanisms.runs.fitting import fitting
from mechanisms.runs.folder import claim
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.hooks import Hooks
from mechanisms.training.loop import fit
from mechanisms.training.state import CONFIG, METRICS

SUMMARY, TABLE = "metrics.json", "metrics.md"
_SHOWN = 10  # rows of the grid


def train_experts(data: ExpertsData, where: RunOptions, training: TrainingConfig = DEFAULTS, config: ExpertsConfig = ExpertsConfig(),
                  seeds: int = 1) -> dict[str, Any]:
    """Train and evaluate the experts of every seed; returns what ``RUN/experts/metrics.json`` holds.

    Each seed leaves in ``RUN/experts/seedN`` what :func:`mechanisms.training.loop.fit` does, and ``result.json``, ``grid.png``,
    ``confusion.png`` and ``curves.png``. The table is over all seeds of the run folder that were trained alike.

    Weights are averaged (``--ema``); the running statistics of an expert's batch norm (``--expert cnn`` and ``vae``) are those of the
    last updates, and not averaged with them. Evaluate such experts with ``--ema 0`` where the two are far apart.

    Args:
        data: which data set.
        training: of every seed; ``seed`` is the first one.
        seeds: how many.

    Raises:
        UserError: for a data set without canonical images, numbers that make no sense, or a training that cannot go on.
    """
    run = where.run
    training = _budget(training, where)
    training.check()
    config.check(training.batch_size)
    if where.resume and where.overwrite:
        raise UserError("--resume continues a training, --overwrite throws it away; give one of them")
    if training.keep == "best" or training.patience:
        raise UserError("--keep best and --patience ask when the loss is least; here it is that of two who compete, which does not fall as "
                        "experts improve. Give a budget (--steps) instead")
    dataset = unpaired(data.open())
    train, valid = unlabelled(dataset, "train"), unlabelled(dataset, "valid")
    config.check(training.batch_size, len(train))
    check_apart(dataset)
    claim(run, dataset, data)
    judge = None
    for one in (of_seeds := seeded(training, seeds)):
        torch.manual_seed(one.seed)
        with fitting(f"--experts {config.experts} --expert {config.expert}"):
            model = Experts(dataset.schema.image.shape, config, dataset.margin)
        folder = folder_of(run, one.seed)
        fit(Competition(model), train, valid, one, folder, model.describe(), where,
            Hooks(kept=model, watch=warn_if_won))
        judge = judge or classifier(run, dataset, training.device)
        if PartialState().is_main_process:
            evaluated(run, one.seed, dataset, judge)
        PartialState().wait_for_everyone()
    if not PartialState().is_main_process:
        return {}
    results = results_of(run, alike(run, training.seed))
    found = summary(results)
    write_json(run / FOLDER / SUMMARY, found)
    written = table(results)
    with replacing(run / FOLDER / TABLE) as temporary:
        temporary.write_text(written + "\n", encoding="utf-8")
    print(written)
    for line in _remarks(dataset, config.experts, results):
        print(line)
    print(f"tables in {run / FOLDER}, pictures in {', '.join(str(folder_of(run, one.seed)) for one in of_seeds)}")
    return found


def _remarks(dataset: UnpairedDataset, experts: int, results: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What a table alone does not tell: what each expert of each seed was found to undo, and what cannot be reached at all."""
    lines = []
    for seed, result in results.items():
        found, usage = result.get("found", {}), result["usage"]
        busy = [e for e, share in enumerate(usage) if share * len(usage) >= IDLE_BELOW]
        told = [f"expert {e} wins {100 * usage[e]:.0f} %" + (f" ({found[str(e)]})" if str(e) in found else "") for e in busy]
        idle = len(usage) - len(busy)
        lines.append(f"seed {seed}: {', '.join(told)}" + (f"; {idle} win (almost) nothing" if idle else ""))
    if 0 < experts < len(dataset.mechanisms):
        lines.append(f"{experts} experts cannot part {len(dataset.mechanisms)} mechanisms: Hungarian accuracy is at most "
                     f"{experts / len(dataset.mechanisms):.2f} where all are as frequent")
    return lines


def seeded(training: TrainingConfig, seeds: int) -> list[TrainingConfig]:
    """``training`` once for each of so many seeds, counted up from its own."""
    return [replace(training, seed=training.seed + k) for k in range(seeds)]


def _budget(given: TrainingConfig, where: RunOptions) -> TrainingConfig:
    """The training with a budget: the one given, or that of the training that is resumed, or the usual one."""
    path = folder_of(where.run, given.seed) / CONFIG
    if where.resume and path.exists() and not (given.steps or given.epochs or given.minutes):
        begun = read_json(path, {"training": dict}, "Give a budget: --steps")["training"]
        return replace(given, **{name: begun.get(name) for name in ("steps", "epochs", "minutes")})
    return given.or_budget(steps=DEFAULT_STEPS)


def evaluated(run: Path, seed: int, dataset: UnpairedDataset, judge: Predictors | None) -> dict[str, Any]:
    """Figures of one seed on the test split, with its pictures; warnings go to stderr."""
    folder = folder_of(run, seed)
    model = Experts.load(run, seed)
    result = evaluate_on(model, dataset, "test", judge)
    result["seconds"] = MetricsLog.last(folder / METRICS)["seconds"]
    result["warnings"] = warnings_of(folder, result["usage"])
    for warning in result["warnings"]:
        print(f"warning: seed {seed}: {warning}", file=sys.stderr)
    write_json(folder / RESULT, result)
    pictures(folder, model, dataset, result)
    return result


def pictures(folder: Path, model: Experts, dataset: UnpairedDataset, result: dict[str, Any]) -> None:
    """``grid.png``, ``confusion.png`` where mechanisms are known, and ``curves.png``."""
    rows, names = dataset.split("test"), dataset.mechanisms
    if "mechanism" in rows.attributes:  # another digit for each mechanism
        which = [(rows.attributes["mechanism"] == k).nonzero().flatten() for k in range(len(names))]
        shown = torch.stack([found[k % len(found)] for k, found in enumerate(which) if len(found)])
        labels = [names[int(k)] for k in rows.attributes["mechanism"][shown]]
        counts = torch.tensor(result["confusion"]).numpy()
        write(confusion_figure(counts, names), folder / "confusion.png")
    else:
        shown, labels = torch.arange(min(_SHOWN, len(rows))), []
    held = dataset.canonical("test")
    canonical = torch.stack([torch.as_tensor(held[k % len(held)]) for k in range(len(shown))]).float() / 255
    clean = dataset.clean("test")
    known = None if clean is None else clean[shown].float() / 255
    write(grid(model, rows.batch(shown)["image"], canonical, labels, result.get("found"), known), folder / "grid.png")
    write(curves(MetricsLog.read(folder / METRICS), model.config.experts), folder / "curves.png")

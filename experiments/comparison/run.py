"""Runs a comparison: what all share first, then every method and seed, then the table of what is there.

Nothing that is finished is done again, what was interrupted goes on, and what fails loses no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datasets.base import CausalDataset
from dscm.evaluation.evaluation import Evaluation
from dscm.evaluation.questions import Questions
from experiments.comparison.conditions import Conditions
from experiments.comparison.files import save
from experiments.comparison.methods import METHODS, chosen, trial_of
from experiments.comparison.results import Comparison, Spent
from experiments.comparison.running import FAILURE, run_all
from experiments.comparison.shared import claim_study, share
from experiments.comparison.text import summary
from experiments.comparison.trial import QUESTIONS, SCORES
from mechanisms.runs.files import MetricsLog, RunError, load
from mechanisms.training.state import METRICS, WEIGHTS


def compare(conditions: Conditions, root: Path, *, only: str = "", finetuned: bool = False, seeds: int = 3, out: Path | None = None,
            overwrite: bool = False) -> Comparison:
    """Train and score the methods that are asked for, and write the table of everything that the folder then holds.

    Args:
        root: folder of the comparison; ``out``: of its tables, if another.
        only, finetuned: which methods, see :func:`experiments.comparison.methods.chosen`.
        seeds: how many, from that of the training on.
        overwrite: throw away what the folder holds.

    Raises:
        RunError: for a folder of another comparison; once the table is written, if a trial has failed.
        UserError: for unknown methods; for data or conditions that cannot be used.
        KeyboardInterrupt: after Ctrl-C, once running trainings have saved their state; the same command goes on.
    """
    dataset = conditions.data.open()
    names, absent = chosen(only, dataset, finetuned=finetuned, curve=bool(conditions.budgets))
    claim_study(root, conditions, dataset, overwrite)
    first = conditions.training.seed
    trials = [trial_of(name, conditions, root, seed, minutes) for minutes in conditions.budgets or [None]
              for seed in range(first, first + seeds) for name in names if METHODS[name].trained or seed == first]
    unfinished = [trial for trial in trials if not (trial.folder / SCORES).exists()]
    print(f"{len(trials)} to compare on {dataset.title}, {len(trials) - len(unfinished)} of them finished; in {root}")
    if unfinished:
        share(root, conditions, dataset, unfinished)
    failures: dict[str, str] = {}
    for wave in ([t for t in unfinished if not t.after], [t for t in unfinished if t.after]):
        failures |= run_all(wave, conditions.jobs)
    comparison = collect(root, conditions, dataset, {**absent, **failures})
    print("\n" + summary(comparison))
    print("\nwrote " + ", ".join(map(str, save(comparison, out or root))))
    if failures:
        raise RunError(f"{len(failures)} of {len(trials)} failed: " + "; ".join(f"{title}: {why}" for title, why in failures.items())
                       + f". The others are in the table; see {FAILURE} in their folders, and call the same command to try again")
    return comparison


def collect(root: Path, conditions: Conditions, dataset: CausalDataset, without: Mapping[str, str]) -> Comparison:
    """Everything that the folder holds of this comparison, finished today or earlier.

    Args:
        without: what is not in the tables, and why.

    Raises:
        RunError: if nothing is finished.
    """
    results: dict[str, dict[int, Evaluation]] = {}
    spent: dict[str, list[Spent]] = {}
    for minutes in conditions.budgets or [None]:
        for name, method in METHODS.items():
            folder = trial_of(name, conditions, root, minutes=minutes).folder.parent
            label = f"{name}, {minutes:g} min" if minutes else name
            for path in sorted(folder.glob(f"*/{SCORES}"), key=_seed_of):
                results.setdefault(label, {})[_seed_of(path)] = Evaluation.load(path)
                if method.trained:
                    spent.setdefault(label, []).append(_spent(path.parent / method.folder))
    if not results:
        raise RunError(f"nothing is finished in {root}: " + "; ".join(f"{title}: {why}" for title, why in without.items()))
    questions = Questions.load(root / QUESTIONS, dataset)
    return Comparison(about(conditions, dataset, questions), results, spent, without)


def _seed_of(path: Path) -> int:
    """Of ``…/seed-<n>/metrics.json``; -1 of what has none."""
    return int(path.parent.name.partition("-")[2] or -1)


def _spent(folder: Path) -> Spent:
    last = MetricsLog.last(folder / METRICS)
    return Spent(last["step"], last["seconds"], sum(w.numel() for w in load(folder / WEIGHTS)["weights"].values()))


def about(conditions: Conditions, dataset: CausalDataset, questions: Questions) -> dict[str, Any]:
    """Plain values for the head of the table."""
    words = {"minutes": "minute", "steps": "update", "epochs": "epoch"}
    budget = next(f"{value:g} {word}{'s' * (value != 1)}" for name, word in words.items()
                  if (value := getattr(conditions.training, name)))
    if conditions.budgets:
        budget = f"{', '.join(f'{m:g}' for m in conditions.budgets)} minutes"
    return {"dataset": dataset.title, "options": list(conditions.data.option), "training_images": len(dataset.split("train")),
            "questions": questions.about(), "budget": budget, "budgets": list(conditions.budgets), "draws": conditions.draws,
            "border": dataset.border, "threads": max(1, torch.get_num_threads() // conditions.jobs), "jobs": conditions.jobs,
            "keep": conditions.training.keep}

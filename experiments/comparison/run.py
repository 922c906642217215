"""Runs a comparison: what all share first, then every contestant and seed, then the table of what is there.

Nothing that is finished is done again, what was interrupted goes on, and what fails loses nobody else.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from datasets.base import CausalDataset
from datasets.errors import UserError
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation, evaluate
from dscm.evaluation.questions import Questions, draw_questions
from experiments.comparison.models import ATTRIBUTES_OF_SEEDS, CONTESTANTS, QUESTIONS, SCORES, TEACHERS, Entry, chosen
from experiments.comparison.options import Options
from experiments.comparison.supervised import true_pairs
from experiments.comparison.table import Report, Trained
from mechanisms import predictors
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.anticausal.model import load_predictors
from mechanisms.runs.files import MetricsLog, RunError, load, read_json, replacing, write_json
from mechanisms.training.config import RunOptions
from mechanisms.training.devices import find_device
from mechanisms.training.state import CHECKPOINT, METRICS, WEIGHTS
from pgm import fit as attributes

RECORD, FAILURE, LOG = "study.json", "failure.txt", "log.txt"
_FREE = ("seed", "device", "workers", "checkpoint_seconds")  # of the training: may change from call to call


def compare(options: Options) -> Report:
    """Train and score whoever is asked for, and write the table of everything that the folder then holds.

    Raises:
        RunError: for a folder of another comparison; once the table is written, if a contestant has failed.
        UserError: for unknown contestants; for data or options that cannot be used.
        KeyboardInterrupt: after Ctrl-C, once running trainings have saved their state; the same command goes on.
    """
    dataset = options.data.open()
    names, absent = chosen(options, dataset)
    claim_study(options, dataset)
    seeds = range(options.training.seed, options.training.seed + options.seeds)
    entries = [Entry(options, name, seed, minutes) for minutes in options.minutes() or [None]
               for seed in seeds for name in names if CONTESTANTS[name].trained or seed == seeds[0]]
    open_entries = [entry for entry in entries if not (entry.folder / SCORES).exists()]
    print(f"{len(entries)} to compare on {dataset.title}, {len(entries) - len(open_entries)} of them finished; in {options.run}")
    if open_entries:
        share(options, dataset, open_entries)
    failures: dict[str, str] = {}
    for wave in ([e for e in open_entries if not e.contestant.after], [e for e in open_entries if e.contestant.after]):
        failures |= run_all(wave, options.jobs)
    report = collect(options, dataset, absent, failures)
    print("\n" + report.summary())
    print("\nwrote " + ", ".join(map(str, report.save(options.out or options.run))))
    if failures:
        raise RunError(f"{len(failures)} of {len(entries)} failed: " + "; ".join(f"{title}: {why}" for title, why in failures.items())
                       + f". The others are in the table; see {FAILURE} in their folders, and call the same command to try again")
    return report


# ------------------------------------------------------------------------------------------------ what all share
def claim_study(options: Options, dataset: CausalDataset) -> None:
    """Mark the folder as this comparison's, or check that it is.

    Raises:
        RunError: if it holds a comparison under other conditions, or something that is no comparison.
    """
    training = {key: value for key, value in asdict(Entry(options, "").training).items() if key not in _FREE}
    if options.budgets:  # which are in folders of their own
        training = {key: value for key, value in training.items() if key not in ("epochs", "steps", "minutes")}
    now = {"dataset": dataset.title, "data": dataset.graph.fingerprint(), "options": list(options.data.option), "count": options.count,
           "draws": options.draws, "predictor_steps": options.predictor_steps, "finetune_share": options.finetune_share,
           **{f"training, {key}": value for key, value in training.items()},
           **({"jobs": options.jobs, "threads": torch.get_num_threads(), "device": str(find_device(options.training.device))}
              if Entry(options, "").training.minutes else {}),
           **{f"mechanism, {key}": value for key, value in asdict(options.config).items()}}
    path = options.run / RECORD
    if path.exists() and not options.overwrite:
        then = read_json(path, {}, "Choose another --run, or --overwrite")
        if changed := [f"{key} {then[key]} → {value}" for key, value in now.items() if key in then and then[key] != value]:
            raise RunError(f"{options.run} holds a comparison under other conditions ({'; '.join(changed)}), whose figures do not belong "
                           "into one table with these; choose another --run, or --overwrite")
        write_json(path, {**then, **now})
        return
    if path.exists():
        for folder in (*CONTESTANTS, PREDICTORS, TEACHERS, ATTRIBUTES_OF_SEEDS, *(p.name for p in options.run.glob("*min") if p.is_dir())):
            shutil.rmtree(options.run / folder, ignore_errors=True)
        (options.run / QUESTIONS).unlink(missing_ok=True)
    elif options.run.exists() and any(options.run.iterdir()):
        raise RunError(f"{options.run} already holds something that is no comparison; choose another --run")
    write_json(path, now)


def share(options: Options, dataset: CausalDataset, entries: Sequence[Entry]) -> None:
    """Questions, predictors, the attributes of each seed and true pairs: made once, before anybody needs them."""
    path = options.run / QUESTIONS
    if not path.exists():
        draw_questions(dataset, "test", min(options.count, len(dataset.split("test"))), options.training.seed).save(path)
    common = {"device": options.training.device, "validation_rows": options.training.validation_rows}
    if not _trained(options.run / PREDICTORS, options.predictor_steps):
        resume = (options.run / PREDICTORS / CHECKPOINT).exists()
        training = replace(predictors.DEFAULTS, steps=options.predictor_steps, seed=options.training.seed, **common)
        predictors.train_predictors(dataset, predictors.Options(options.data, RunOptions(options.run, resume=resume), training))
    if any(entry.contestant.after for entry in entries) and not _trained(options.run / TEACHERS / PREDICTORS, options.predictor_steps):
        where = RunOptions(options.run / TEACHERS, resume=(options.run / TEACHERS / PREDICTORS / CHECKPOINT).exists())
        training = replace(predictors.DEFAULTS, steps=options.predictor_steps, seed=options.training.seed + 1_000, **common)
        predictors.train_predictors(dataset, predictors.Options(options.data, where, training))
    for seed in sorted({entry.seed for entry in entries if entry.contestant.trained}):
        run = options.run / ATTRIBUTES_OF_SEEDS / f"seed-{seed}"
        if not _trained(run / attributes.FOLDER, attributes.DEFAULT_STEPS):
            resume = (run / attributes.FOLDER / CHECKPOINT).exists()
            training = replace(attributes.DEFAULTS, steps=attributes.DEFAULT_STEPS, seed=seed, **common)
            attributes.train_attributes(dataset, options.data, RunOptions(run, resume=resume), training)
    if any(entry.contestant.bound and entry.contestant.trained for entry in entries):
        true_pairs(dataset, "train")


def _trained(folder: Path, steps: int) -> bool:
    return (folder / WEIGHTS).exists() and load(folder / WEIGHTS)["step"] >= steps


# ------------------------------------------------------------------------------------------------ contestants
def run_all(entries: Sequence[Entry], jobs: int = 1) -> dict[str, str]:
    """Train and score every entry, ``jobs`` at a time; what failed, by its title, and why."""
    if jobs == 1 or len(entries) < 2:
        outcomes = ((entry, attempt(entry)) for entry in entries)
        return {entry.title: why for entry, why in outcomes if why}
    context, failures = multiprocessing.get_context("spawn"), {}
    threads = max(1, torch.get_num_threads() // jobs)
    waiting, running = deque(entries), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                entry = waiting.popleft()
                process = context.Process(target=_alone, args=(entry, threads), name=entry.title)
                process.start()
                running[process.sentinel] = process, entry
                print(f"{entry.title}: began; its output is in {entry.folder / LOG}", flush=True)
            for sentinel in wait(list(running)):
                process, entry = running.pop(sentinel)
                process.join()
                if why := _outcome(entry, process.exitcode):
                    failures[entry.title] = why
                print(f"{entry.title}: {why or 'finished'}", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()  # a training then saves its state and stops
        for process, _ in running.values():
            process.join()
    return failures


def attempt(entry: Entry) -> str:
    """Train and score one entry; "" or, in one line, why that failed. The whole traceback is in ``failure.txt``."""
    (entry.folder / FAILURE).unlink(missing_ok=True)
    try:
        print(f"\n{entry.title}: {entry.contestant.about}", flush=True)
        score(entry)
    except Exception as error:  # whatever it is, the other contestants shall have their turn
        why = f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}".strip().splitlines()[0]
        with replacing(entry.folder / FAILURE) as temporary:
            temporary.write_text(f"{why}\n\n{traceback.format_exc()}", encoding="utf-8")
        print(f"{entry.title} failed: {why}", file=sys.stderr, flush=True)
        return why
    return ""


def score(entry: Entry) -> Evaluation:
    """Train one entry, ask it the questions, and save its ``metrics.json``."""
    if entry.contestant.after and not (entry.source / SCORES).exists():
        raise RunError(f"it starts from {entry.contestant.after}, which has not finished")
    model = entry.contestant.model(entry)
    judges = load_predictors(entry.options.run, str(find_device(entry.training.device)))
    evaluation = evaluate(model, entry.dataset, entry.questions, judges, EvaluationConfig(draws=entry.options.draws), entry.folder)
    evaluation.save(entry.folder / SCORES)
    return evaluation


def _alone(entry: Entry, threads: int) -> None:
    """What a process of its own does: away from the terminal's Ctrl-C, which its parent passes on as a request to stop."""
    os.setsid()
    entry.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(entry.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(threads)
    try:
        sys.exit(1 if attempt(entry) else 0)
    except KeyboardInterrupt:
        sys.exit(130)


def _outcome(entry: Entry, code: int | None) -> str:
    if code == 0:
        return ""
    path = entry.folder / FAILURE
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else f"its process ended with status {code}"


# ------------------------------------------------------------------------------------------------ results
def collect(options: Options, dataset: CausalDataset, absent: dict[str, str], failures: dict[str, str]) -> Report:
    """Everything that the folder holds of this comparison, finished today or earlier."""
    results: dict[str, dict[int, Evaluation]] = {}
    trained: dict[str, list[Trained]] = {}
    for minutes in options.minutes() or [None]:
        for name, contestant in CONTESTANTS.items():
            root = Entry(options, name, minutes=minutes).folder.parent
            label = f"{name}, {minutes:g} min" if minutes else name
            for path in sorted(root.glob(f"*/{SCORES}"), key=_seed_of):
                results.setdefault(label, {})[_seed_of(path)] = Evaluation.load(path)
                if contestant.trained:
                    trained.setdefault(label, []).append(_training(path.parent / contestant.folder))
    if not results:
        raise RunError(f"nothing is finished in {options.run}: " + "; ".join(f"{title}: {why}" for title, why in failures.items()))
    questions = Questions.load(options.run / QUESTIONS, dataset)
    return Report(about(options, dataset, questions), results, trained, {**absent, **failures})


def _seed_of(path: Path) -> int:
    """Of ``…/seed-<n>/metrics.json``; -1 of what has none."""
    return int(path.parent.name.partition("-")[2] or -1)


def _training(folder: Path) -> Trained:
    last = MetricsLog.last(folder / METRICS)
    return Trained(last["step"], last["seconds"], sum(w.numel() for w in load(folder / WEIGHTS)["weights"].values()))


def about(options: Options, dataset: CausalDataset, questions: Questions) -> dict[str, Any]:
    """Plain values for the head of the table."""
    training = Entry(options, "").training
    words = {"minutes": "minute", "steps": "update", "epochs": "epoch"}
    budget = next(f"{value:g} {word}{'s' * (value != 1)}" for name, word in words.items() if (value := getattr(training, name)))
    if options.budgets:
        budget = f"{', '.join(f'{m:g}' for m in options.minutes())} minutes"
    return {"dataset": dataset.title, "options": list(options.data.option), "training_images": len(dataset.split("train")),
            "questions": questions.about(), "budget": budget, "budgets": options.minutes(), "draws": options.draws,
            "border": dataset.border, "threads": max(1, torch.get_num_threads() // options.jobs), "jobs": options.jobs,
            "keep": training.keep}

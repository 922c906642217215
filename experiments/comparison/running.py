"""Trials, one after the other or in processes of their own: what fails loses no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait

import torch

from datasets.errors import UserError
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation, evaluate
from experiments.comparison.methods import METHODS
from experiments.comparison.trial import SCORES, Trial
from mechanisms.anticausal.model import load_predictors
from mechanisms.runs.files import RunError, replacing
from mechanisms.training.devices import find_device

FAILURE, LOG = "failure.txt", "log.txt"


def run_all(trials: Sequence[Trial], jobs: int = 1) -> dict[str, str]:
    """Train and score every trial, ``jobs`` at a time; what failed, by its title, and why."""
    if jobs == 1 or len(trials) < 2:
        outcomes = ((trial, attempt(trial)) for trial in trials)
        return {trial.title: why for trial, why in outcomes if why}
    context, failures = multiprocessing.get_context("spawn"), {}
    threads = max(1, torch.get_num_threads() // jobs)
    waiting, running = deque(trials), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.popleft()
                process = context.Process(target=_alone, args=(trial, threads), name=trial.title)
                process.start()
                running[process.sentinel] = process, trial
                print(f"{trial.title}: began; its output is in {trial.folder / LOG}", flush=True)
            for sentinel in wait(list(running)):
                process, trial = running.pop(sentinel)
                process.join()
                if why := _outcome(trial, process.exitcode):
                    failures[trial.title] = why
                print(f"{trial.title}: {why or 'finished'}", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()  # a training then saves its state and stops
        for process, _ in running.values():
            process.join()
    return failures


def attempt(trial: Trial) -> str:
    """Train and score one trial; "" or, in one line, why that failed. The whole traceback is in ``failure.txt``."""
    (trial.folder / FAILURE).unlink(missing_ok=True)
    try:
        print(f"\n{trial.title}: {METHODS[trial.method].about}", flush=True)
        score(trial)
    except Exception as error:  # whatever it is, the other trials shall have their turn
        why = f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}".strip().splitlines()[0]
        with replacing(trial.folder / FAILURE) as temporary:
            temporary.write_text(f"{why}\n\n{traceback.format_exc()}", encoding="utf-8")
        print(f"{trial.title} failed: {why}", file=sys.stderr, flush=True)
        return why
    return ""


def score(trial: Trial) -> Evaluation:
    """Train one trial's model, ask it the questions, and save its ``metrics.json``."""
    if trial.after and not (trial.source / SCORES).exists():
        raise RunError(f"it starts from {trial.after}, which has not finished")
    model = METHODS[trial.method].model(trial)
    judges = load_predictors(trial.root, str(find_device(trial.training.device)))
    config = EvaluationConfig(draws=trial.conditions.draws)
    evaluation = evaluate(model, trial.dataset, trial.questions, judges, config, trial.folder)
    evaluation.save(trial.folder / SCORES)
    return evaluation


def _alone(trial: Trial, threads: int) -> None:
    """What a process of its own does: away from the terminal's Ctrl-C, which its parent passes on as a request to stop."""
    os.setsid()
    trial.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(trial.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(threads)
    try:
        sys.exit(1 if attempt(trial) else 0)
    except KeyboardInterrupt:
        sys.exit(130)


def _outcome(trial: Trial, code: int | None) -> str:
    if code == 0:
        return ""
    path = trial.folder / FAILURE
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else f"its process ended with status {code}"

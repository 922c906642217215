"""The quickstart from its first stage to its last: data, trainings, counterfactuals, scores, classifiers, report."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule

from datasets.options import DataOptions
from datasets.schema import SchemaError
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import evaluate
from dscm.evaluation.questions import draw_questions
from dscm.evaluation.table import format_table
from dscm.jitter.run import calibrate_run
from dscm.model import DSCM
from experiments.report.classifiers import classifier_task, stress_classifiers
from experiments.report.compose import compose
from experiments.report.effort import Effort
from experiments.report.figures import default_do, draw_figures, metric_figures
from experiments.report.html import write_report
from experiments.report.sections import commands
from experiments.report.training import MECHANISMS, train_attributes, train_image, train_predictors
from experiments.stress.text import as_markdown
from mechanisms.anticausal.model import load_predictors
from mechanisms.runs.folder import claim
from mechanisms.training.config import RunOptions
from mechanisms.training.devices import find_device
from pgm.interventions import parse_do

STAGES = 8
REPORT, METRICS, INTERVENTIONS = "report.html", "metrics.json", "interventions.json"


def quickstart(data: DataOptions, where: RunOptions, effort: Effort, *, minutes: float, do: tuple[str, ...] = (), count: int = 5,
               seed: int = 0, device: str = "auto", precision: str = "auto", flags: Mapping[str, Any]) -> Path:
    """Run all stages; returns the path of the report.

    Leaves in the run folder ``pgm/`` and ``image/`` (the mechanisms), ``predictors/``, ``figures/*.png``, ``interventions.json``,
    ``metrics.json``, classifiers with ``robustness/`` (tables and figures), and ``report.html``.

    Args:
        minutes: of the image mechanism, as the report's commands spell it; the training's budget is that of ``effort``.
        do: interventions of the grid, as a command line spells them; without any, those of :func:`default_do`.
        count: images in the grid.
        flags: what was asked for, as plain values; for the report's last section.

    Raises:
        UserError: for data, interventions or a run folder that cannot be used; see also :func:`mechanisms.training.loop.fit`.
    """
    run, began, console = where.run, time.monotonic(), Console(highlight=False)

    with stage(console, 1, "Data"):
        dataset = data.open()
        claim(run, dataset, data)
        training, test = dataset.split("train"), dataset.split("test")
        count, scored = min(count, len(test)), min(effort.scored, len(test))
        questions = draw_questions(dataset, "test", scored, seed)
        with_truth = [question.variable for question in questions.questions if dataset.has_truth([question.variable])]
        do = do or default_do(dataset)
        interventions = parse_do(do, dataset.graph, training.attributes, torch.Generator().manual_seed(seed))
        console.print(f"{dataset.title}: {len(training):,} images to train on, {len(test):,} to test. True counterfactuals are known "
                      f"under interventions on: {', '.join(with_truth) or 'nothing'}.")
        try:
            task, why_not = classifier_task(dataset, data, run, effort.stressed, seed), ""
        except SchemaError as error:  # what the data cannot be asked is left out; the rest can
            task, why_not = None, str(error)
            console.print(f"No classifiers will be tested: {why_not}", markup=False, soft_wrap=True)
    with stage(console, 2, "Attributes: fit their causal model"):
        train_attributes(dataset, data, where, effort.attributes, seed, device)
    with stage(console, 3, f"Image: fit its mechanism, {effort.words}"):
        train_image(dataset, data, where, effort.image, seed, device, precision)
    with stage(console, 4, "Predictors: networks that read attributes off images, to judge by"):
        train_predictors(dataset, data, where, effort.predictors, seed, device)
    with stage(console, 5, "Counterfactuals: merge both mechanisms, and look"):
        calibrate_run(run, min(effort.calibrated, len(dataset.split("valid"))), seed, device)
        dscm = DSCM.load(run, find_device(device))
        figures = draw_figures(dscm, dataset, interventions, run, MECHANISMS, count, seed)
        console.print("\n".join(str(path) for path in figures.values()), markup=False, soft_wrap=True)
    with stage(console, 6, "Scores: every metric, the error to the truth first"):
        questions.save(run / INTERVENTIONS)
        config = EvaluationConfig(draws=effort.draws, draw_images=effort.drawn, cycle_images=effort.drawn)
        evaluation = evaluate(dscm, dataset, questions, load_predictors(run, dscm.device), config, run)
        evaluation.save(run / METRICS)
        figures |= metric_figures(evaluation, run)
        console.print(format_table(evaluation), markup=False, soft_wrap=True)
    with stage(console, 7, "Classifiers: trained where causes go together, tested where they do not"):
        stressed = None
        if task is None:
            console.print(f"Left out: {why_not}", markup=False, soft_wrap=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the tables say what lies beyond the training data
                stressed = stress_classifiers(task, dscm, where, effort.classifiers, effort.seeds, seed, device)
            console.print(as_markdown(stressed[0]), markup=False, soft_wrap=True)
    with stage(console, 8, "Report"):
        took = (time.monotonic() - began) / 60
        facts = [("images to train on", f"{len(training):,}", ""), ("minutes, this run", f"{took:.1f}", ""),
                 *((f"error, {s.intervention}", f"{s.value:.2f}", f"of 255; copying: {s.floors['identity']:.2f}")
                   for s in evaluation.find("truth_l1"))]
        lead = ("What would this very image have looked like, had one of its causes been otherwise? Mechanisms for each attribute and "
                f"for the image were fitted to the data of {dataset.title}; merged along its causal graph, they answer.")
        values = {name: float(value) for _, setting in interventions for name, value in setting.items() if not callable(value)}
        alone = commands(data, run, minutes, seed, do, dict(list(values.items())[:1]), task)
        sections = compose(dataset, run, figures, interventions, with_truth, evaluation, stressed or why_not, alone,
                           {**flags, "it took": f"{took:.1f} minutes"})
        report = run / REPORT
        write_report(report, f"Counterfactual images: {dataset.title}", lead, sections, facts)
        console.print(str(report.resolve()), style="bold", markup=False, soft_wrap=True)
    console.print(f"Next: open the report; its section “Every step alone” has the commands. Another question:\n"
                  f"  python -m dscm.counterfactual {shlex.join(['--run', str(run), '--do', do[0]])} --count 8 --out grid.png\n"
                  f"More training: the same command with a larger --minutes. Your own data: --dataset my_scm.py (see docs/my_scm.py).",
                  markup=False, soft_wrap=True)
    return report


@contextmanager
def stage(console: Console, number: int, title: str) -> Iterator[None]:
    """A heading before, and how long it took after."""
    console.print(Rule(f"[bold]{number}/{STAGES}  {title}", align="left"))
    start = time.monotonic()
    yield
    console.print(f"[dim]{time.monotonic() - start:.0f} s[/dim]\n")

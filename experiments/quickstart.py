"""``python -m experiments.quickstart``: from data to a report that one can look at, in minutes on two cores.

Every stage is what a command does alone; the report's section "Every step alone" says which.
"""

from __future__ import annotations

import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report.options import Options
from mechanisms.runs.command import run_command
from mechanisms.training.config import RunOptions, TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from datasets.base import CausalDataset
    from dscm.evaluation.evaluation import Evaluation
    from dscm.evaluation.questions import Questions
    from dscm.model import DSCM
    from experiments.report.classifiers import Plan
    from experiments.report.html import Section
    from experiments.stress.results import StressResults
    from pgm.interventions import Do

STAGES = 8
REPORT, METRICS, INTERVENTIONS = "report.html", "metrics.json", "interventions.json"
MECHANISMS = ("pgm", "image", "predictors")  # folders of what is trained
_PREDICTOR_MINUTES = 0.4


def quickstart(options: Options) -> Path:
    """Run all stages; returns the path of the report.

    Leaves in the run folder ``pgm/`` and ``image/`` (the mechanisms), ``predictors/``, ``figures/*.png``, ``interventions.json``,
    ``metrics.json``, classifiers with ``robustness/`` (tables and figures), and ``report.html``.

    Raises:
        UserError: for data, options or a run folder that cannot be used; see also :func:`mechanisms.training.loop.fit`.
    """
    import warnings

    import torch
    from rich.console import Console
    from rich.rule import Rule

    from datasets.schema import SchemaError
    from dscm.evaluation.questions import draw_questions
    from dscm.evaluation.table import format_table
    from dscm.jitter.run import calibrate_run
    from dscm.model import DSCM
    from experiments.report.classifiers import plan, stress_classifiers
    from experiments.report.figures import default_do, draw_figures
    from experiments.report.html import write_report
    from experiments.stress.text import as_markdown
    from mechanisms.runs.folder import claim
    from mechanisms.training.devices import find_device
    from pgm.interventions import parse_do

    options.check()
    run, began, console = options.folder, time.monotonic(), Console(highlight=False)

    @contextmanager
    def stage(number: int, title: str) -> Iterator[None]:
        console.print(Rule(f"[bold]{number}/{STAGES}  {title}", align="left"))
        start = time.monotonic()
        yield
        console.print(f"[dim]{time.monotonic() - start:.0f} s[/dim]\n")

    with stage(1, "Data"):
        dataset = options.data.open()
        claim(run, dataset, options.data)
        training, test = dataset.split("train"), dataset.split("test")
        count, scored = min(options.count, len(test)), min(16 if options.smoke else options.scored, len(test))
        questions = draw_questions(dataset, "test", scored, options.seed)
        known = [question.variable for question in questions.questions if dataset.has_truth([question.variable])]
        wanted = options.do or default_do(dataset)
        interventions = parse_do(wanted, dataset.graph, training.attributes, torch.Generator().manual_seed(options.seed))
        console.print(f"{dataset.title}: {len(training):,} images to train on, {len(test):,} to test. True counterfactuals are known "
                      f"under interventions on: {', '.join(known) or 'nothing'}.")
        try:
            chosen, why_not = plan(dataset, options), ""
        except SchemaError as error:  # what the data cannot be asked is left out; the rest can
            chosen, why_not = None, str(error)
            console.print(f"No classifiers will be tested: {why_not}", markup=False, soft_wrap=True)
    with stage(2, "Attributes: fit their causal model"):
        train_attributes(dataset, options)
    with stage(3, "Image: fit its mechanism, " + ("a few updates" if options.smoke else f"{options.minutes:g} minutes")):
        train_image(dataset, options)
    with stage(4, "Predictors: networks that read attributes off images, to judge by"):
        train_predictors(dataset, options)
    with stage(5, "Counterfactuals: merge both mechanisms, and look"):
        calibrate_run(run, min(16 if options.smoke else 256, len(dataset.split("valid"))), options.seed, options.device)
        dscm = DSCM.load(run, find_device(options.device))
        figures = draw_figures(dscm, dataset, interventions, run, MECHANISMS, count, options.seed)
        console.print("\n".join(str(path) for path in figures.values()), markup=False, soft_wrap=True)
    with stage(6, "Scores: every metric, the error to the truth first"):
        questions.save(run / INTERVENTIONS)
        evaluation, drawn = score(dscm, dataset, questions, options)
        figures |= drawn
        console.print(format_table(evaluation), markup=False, soft_wrap=True)
    with stage(7, "Classifiers: trained where causes go together, tested where they do not"):
        tested = None
        if chosen is None:
            console.print(f"Left out: {why_not}", markup=False, soft_wrap=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the tables say what lies beyond the training data
                tested = stress_classifiers(chosen, dscm, options)
            console.print(as_markdown(tested[0]), markup=False, soft_wrap=True)
    with stage(8, "Report"):
        minutes = (time.monotonic() - began) / 60
        facts = [("images to train on", f"{len(training):,}", ""), ("minutes, this run", f"{minutes:.1f}", ""),
                 *((f"error, {s.intervention}", f"{s.value:.2f}", f"of 255; copying: {s.floors['identity']:.2f}")
                   for s in evaluation.find("truth_l1"))]
        lead = ("What would this very image have looked like, had one of its causes been otherwise? Mechanisms for each attribute and "
                f"for the image were fitted to the data of {dataset.title}; merged along its causal graph, they answer.")
        report = run / REPORT
        write_report(report, f"Counterfactual images: {dataset.title}", lead,
                     compose(dataset, options, figures, interventions, known, evaluation, minutes, chosen, tested or why_not), facts)
        console.print(str(report.resolve()), style="bold", markup=False, soft_wrap=True)
    console.print(f"Next: open the report; its section “Every step alone” has the commands. Another question:\n"
                  f"  python -m dscm.counterfactual {shlex.join(['--run', str(run), '--do', wanted[0]])} --count 8 --out grid.png\n"
                  f"More training: the same command with a larger --minutes. Your own data: --dataset my_scm.py (see docs/my_scm.py).",
                  markup=False, soft_wrap=True)
    return report


# ------------------------------------------------------------------------------------------------ training
def train_attributes(dataset: CausalDataset, options: Options) -> None:
    from pgm import fit as train

    training = replace(train.DEFAULTS, seed=options.seed, device=options.device,
                       **({"steps": 20, "validations": 2} if options.smoke else {"steps": train.DEFAULT_STEPS}))
    _train(train.FOLDER, training, options,
           lambda where: train.train_attributes(dataset, options.data, where, training))


def train_image(dataset: CausalDataset, options: Options) -> None:
    from mechanisms import train
    from mechanisms.image.registry import FOLDER

    training = replace(train.DEFAULTS, seed=options.seed, device=options.device, precision=options.precision,
                       **({"steps": 6, "validations": 2} if options.smoke else {"minutes": options.minutes}))
    _train(FOLDER, training, options, lambda where: train.train_image(dataset, train.Options(options.data, where, training)))


def train_predictors(dataset: CausalDataset, options: Options) -> None:
    from mechanisms import predictors
    from mechanisms.anticausal.model import FOLDER

    training = replace(predictors.DEFAULTS, seed=options.seed, device=options.device, validations=2, ema=0.99,
                       **({"steps": 6} if options.smoke else {"minutes": _PREDICTOR_MINUTES}))
    _train(FOLDER, training, options, lambda where: predictors.train_predictors(
        dataset, predictors.Options(options.data, where, training, renderings=1)))


def _train(folder: str, training: TrainingConfig, options: Options, fit: Callable[[RunOptions], nn.Module]) -> None:
    """Train into ``folder`` of the run, or continue the training that it holds; one that has reached its budget stays as it is."""
    from mechanisms.training.state import CHECKPOINT

    path = options.folder / folder
    resume = options.resume and not options.overwrite and (path / CHECKPOINT).exists()
    if resume:
        print(f"{path} holds a training: it goes on from there, unless it has reached its end (--overwrite begins anew)")
    fit(RunOptions(options.folder, resume=resume, overwrite=options.overwrite))


# ------------------------------------------------------------------------------------------------ scoring
def score(dscm: DSCM, dataset: CausalDataset, questions: Questions, options: Options) -> tuple[Evaluation, dict[str, Path]]:
    """Every metric into ``metrics.json``, and its figures: ``{what it shows: path}``."""
    from dscm.evaluation.config import EvaluationConfig
    from dscm.evaluation.evaluation import evaluate
    from dscm.evaluation.figures import figures_of
    from dscm.figures.style import save_figure
    from mechanisms.anticausal.model import load_predictors

    run, images = options.folder, 4 if options.smoke else 64
    config = EvaluationConfig(draws=4 if options.smoke else 32, draw_images=images, cycle_images=images)
    evaluation = evaluate(dscm, dataset, questions, load_predictors(run, dscm.device), config, run)
    figures = {f"metrics_{name}": save_figure(figure, run / "figures" / f"metrics_{name}.png")
               for name, figure in figures_of(evaluation.scores).items()}
    evaluation.save(run / METRICS)
    return evaluation, figures


# ------------------------------------------------------------------------------------------------ telling
def compose(dataset: CausalDataset, options: Options, figures: dict[str, Path], interventions: Sequence[tuple[str, Do]],
            known: Sequence[str], evaluation: Evaluation, minutes: float, chosen: Plan | None = None,
            tested: tuple[StressResults, dict[str, Path]] | str = "") -> list[Section]:
    """All sections of the report, in order; ``tested`` may be why no classifiers were."""
    from experiments.report import sections
    from experiments.report.figures import default_do
    from mechanisms.runs.files import read_json, versions
    from mechanisms.training.state import CONFIG

    labels = [label for label, _ in interventions]
    example = {name: float(value) for _, do in interventions for name, value in do.items() if not callable(value)}
    asked = asdict(options)
    configs = {name: read_json(options.folder / name / CONFIG, {"training": dict, "config": dict}) for name in MECHANISMS}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB on Linux
    settings = {
        "This run": {**asked.pop("data"), **asked, "it took": f"{minutes:.1f} minutes", "largest memory": f"{memory / 2**30:.2f} GiB",
                     **versions()},
        **{f"Training of {name}": config["training"] for name, config in configs.items()},
        **{f"Mechanism {name}": config["config"] for name, config in configs.items()},
    }
    return [
        sections.data(dataset),
        sections.counterfactuals(figures["counterfactuals"], labels, known),
        sections.scores(evaluation),
        sections.attributes(figures["attributes"]),
        sections.samples(figures["observed"], figures["sampled"], figures["sampled_mean"]),
        sections.training([figures[f"training_{name}"] for name in MECHANISMS], [options.folder / name for name in MECHANISMS]),
        sections.no_robustness(tested) if isinstance(tested, str) else sections.robustness(*tested),
        sections.every_metric(evaluation, {name: path for name, path in figures.items() if name.startswith("metrics_")}),
        sections.limits(known),
        sections.commands(options.data, options.folder, options.minutes, options.seed, options.do or default_do(dataset),
                          dict(list(example.items())[:1]), chosen),
        sections.configuration(settings),
    ]


if __name__ == "__main__":
    run_command(Options, quickstart)

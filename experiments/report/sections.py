"""What the quickstart's report says, one function for each section."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from datasets.base import SPLITS, CausalDataset
from datasets.options import DataOptions
from datasets.schema import Variable
from dscm.evaluation.evaluation import Evaluation
from dscm.evaluation.table import HEADER, cycle_table, figure, question_rows
from dscm.metrics.registry import METRICS as MEANINGS
from experiments.metrics.classification import MEANINGS as FIGURES
from experiments.report.classifiers import ClassifierTask
from experiments.report.graph import graph_svg
from experiments.report.html import Section, bullets, code, definitions, details, note, picture, prose, side_by_side, table
from experiments.stress import text as words
from experiments.stress.results import TITLES, StressResults
from mechanisms.runs.files import MetricsLog
from mechanisms.training.state import METRICS


def data(dataset: CausalDataset) -> Section:
    """The causal graph and a table of its variables."""
    training = dataset.split("train").attributes
    rows = [(v.name, v.kind, ", ".join(v.parents) or "–", *_summary(v, training.get(v.name))) for v in dataset.graph]
    counts = ", ".join(f"{len(dataset.split(name)):,} {name}" for name in SPLITS)
    return Section("The data and its causal graph", (
        prose("An arrow means “is a direct cause of”. An intervention on a variable changes it and what lies downstream of it, "
              "and nothing else.")
        + graph_svg(dataset.graph)
        + table(("variable", "kind", "direct causes", "seen in training", "mean ± sd", "unit"), rows, f"{dataset.title}: {counts} images")))


def _summary(variable: Variable, values: Tensor | None) -> tuple[str, str, str]:
    """What training showed of a variable: its range, its mean and deviation, its unit."""
    if values is None:
        channels, height, width = variable.shape
        return f"{height} × {width} pixels", "–", f"{channels} channel{'s' if channels > 1 else ''}"
    if variable.discrete:
        seen, names = sum(count > 0 for count in variable.statistics.counts), ", ".join(variable.classes)
        return f"{seen} of {variable.cardinality} classes" + (f": {names}" if len(names) <= 30 else ""), "–", "–"
    s = variable.statistics
    return f"{s.minimum:.4g} to {s.maximum:.4g}", f"{s.mean:.4g} ± {s.std:.3g}", variable.unit or "–"


def counterfactuals(grid: Path, labels: Sequence[str], with_truth: Sequence[str]) -> Section:
    """The grid; ``with_truth`` names the variables whose interventions have a true image."""
    caption = ("Left: an observed test image. Columns: interventions; values that were set are blue, values that followed are grey, "
               "values beyond the training data are orange. Below each answer: what changed (red is brighter, blue darker)")
    truth = f", and the true counterfactual where it is known, that is under interventions on {_listed(with_truth)}" if with_truth else ""
    missing = "" if with_truth else note(
        "There is no row of true images: this data set does not know its own process. A data set that does defines "
        "`true_counterfactual` and names the interventions in `true_images_under`.")
    return Section("Counterfactuals", (
        prose("What would this very image have looked like, had one of its causes been otherwise? The model infers the image's own "
              "noise (abduction), changes the cause (action), and lets everything downstream follow (prediction).")
        + picture(grid, f"Grid of counterfactual images under {', '.join(labels)}", f"{caption}{truth}.") + missing))


def scores(evaluation: Evaluation) -> Section:
    """Errors to the true counterfactuals beside their floors."""
    bounds = [s for s in evaluation.find("free_energy") if s.unit == "nats/dim"]
    likelihood = prose(*(f"Free energy of the observed images: {figure(s)} nats per dimension (an upper bound of −log p; smaller is "
                         "better)." for s in bounds))
    l1_scores = evaluation.find("truth_l1")
    if not l1_scores:
        return Section("Scores against the truth", note(
            "Nothing can be scored against the truth here: this data set does not define `true_counterfactual`. Looking plausible "
            "is then all that the images above can show; see the limits below.") + likelihood)
    images = []
    for l1 in l1_scores:
        exact, psnr = (evaluation.find(name, l1.intervention)[0] for name in ("truth_l1_true_parents", "truth_psnr"))
        similar = [f"{s.value:.3f} ({s.floors['identity']:.3f})" for s in evaluation.find("truth_ssim", l1.intervention)] or ["–"]
        images.append((f"`{l1.intervention}`", figure(l1), figure(exact), f"{l1.floors['identity']:.2f}",
                       f"{psnr.value:.1f} ({psnr.floors['identity']:.1f})", *similar))
    values = [(f"`{l1.intervention}`", s.variable, how, figure(s), f"{s.floors['truth']:.3g}", f"{s.floors['identity']:.3g}")
              for l1 in l1_scores
              for how, metric in (("predicted by the model", "truth_attribute"), ("measured on the image", "effectiveness_measured"))
              for s in evaluation.find(metric, l1.intervention)]
    of_images = table(("intervention", "error, L1 of 255", "with true parents", "floor: copying", "PSNR in dB (copying)",
                       "SSIM (copying)"), images, "Counterfactual images")
    of_values = table(("intervention", "attribute", "how", "error", "floor: true image", "floor: as observed"), values, "Attributes")
    about = evaluation.about
    return Section("Scores against the truth", (
        prose("This data set knows its own process, so the true counterfactual of every image is known. Scored are "
              f"{about['count']} images of the {about['split']} split, each under one intervention drawn from the training values, away "
              f"from the observed one (seed {about['seed']}). ± is the standard error over images.")
        + of_images + (of_values if values else "") + definitions(_COLUMNS) + likelihood))


_COLUMNS = (
    ("error", "Mean absolute difference to the true counterfactual: of pixels on the 0–255 scale, of attributes in their own unit "
              "(of classes: the share that is wrong). Smaller is better."),
    ("with true parents", "The same when the image's causes are set to their true values: the error of the image mechanism alone."),
    ("floor: copying, as observed", "The error of not answering at all, that is of returning what was observed. "
                                    "A model has to be well below, wherever the intervention has an effect."),
    ("floor: true image", "The error of the measurement itself: what it makes of the true counterfactual image. "
                          "No model can be expected to be below."),
    ("PSNR, SSIM", "Peak signal-to-noise ratio and structural similarity to the true image, larger is better; in brackets, those of "
                   "copying."),
)


_METRIC_FIGURES = {
    "metrics_floors": ("Each metric between its floors", "Each metric on one scale, from what the true image scores to what copying the "
                       "observed image scores. Metrics whose floors coincide say nothing and are left out."),
    "metrics_cycles": ("Drift over repeated interventions", "Distance to the observed image after null interventions, and after going "
                       "there and back. At residual temperature 1 nothing is lost by construction; below, what the latents do not "
                       "explain is."),
    "metrics_calibration": ("Calibration of the draws", "How often the truth lies within the draws' intervals. Below the dashed line, the "
                            "model is more certain than right."),
}


def every_metric(evaluation: Evaluation, figures: Mapping[str, Path]) -> Section:
    """All figures of the evaluation beside their floors, what they mean, and what could not be computed."""
    drawn = "".join(picture(figures[name], alt, caption) for name, (alt, caption) in _METRIC_FIGURES.items() if name in figures)
    names = dict.fromkeys(s.intervention for s in evaluation.scores)
    questions = [(name, rows) for name in names if (rows := question_rows(evaluation.scores, name))]
    tables = "".join(table(HEADER, rows, f"`{name}`") for name, rows in questions)
    if cycles := cycle_table(evaluation.scores):
        tables += table(*cycles, "Distance to the observed image, L1 of 255, by temperature of the pixel residual")
    missing = prose("What could not be computed, and why:") + bullets(f"`{n}`: {why}" for n, why in evaluation.missing.items())
    used = [MEANINGS[name] for name in dict.fromkeys(s.metric for s in evaluation.scores)]
    meanings = table(("metric", "meaning", "how it can mislead"), [(f"`{m.name}`", m.meaning, m.trap) for m in used])
    return Section("Every metric", (
        prose("Published metrics judge a model by other models or by itself, so each stands beside what copying the image, the true "
              "image and real images score. `x*` is the counterfactual image; ± is the standard error over images.")
        + drawn + details("All figures", tables) + (missing if evaluation.missing else "") + details("What each metric means", meanings)))


def robustness(report: StressResults, figures: Mapping[str, Path]) -> Section:
    """Classifiers on intervened images: tables, the figure, and whether the model's stress test predicts the true one.

    Args:
        figures: what :func:`experiments.stress.files.save_results` wrote: ``robustness`` and, if there is one, ``agreement``.
    """
    label, spurious = report.stressed.task.label.name, _listed([v.name for v in report.stressed.task.spurious]) or "a cause"
    tables = "".join(table(header, [[cell.replace("*", "") for cell in line] for line in lines], heading)
                     for heading, header, lines in words.tables(report))
    more = "".join(table(header, [[cell.replace("*", "") for cell in line] for line in lines], heading)
                   for heading, header, lines in words.details(report))
    agreed = picture(figures["agreement"], "Accuracy on true intervened images against accuracy on the model's",
                     "Each point is one algorithm under one intervention. On the line, the model's stress test says what the true one "
                     "says.") if "agreement" in figures else ""
    return Section("Which classifiers survive when causes change?", (
        prose(f"A classifier of `{label}` may rely on {spurious}, because the two go together in training. Here the classifiers are "
              f"shown the same images with {spurious} set to other values, everything else as it was: whoever relied on it fails.")
        + picture(figures["robustness"], "Accuracy of each algorithm as observed and under each intervention",
                  "Each panel is one test, each line one algorithm. Far to the right in all panels is good; a fall from “observational” to "
                  "the others is reliance on what does not matter.")
        + tables + prose("Does a stress test made with the learned model predict the true one? " + words.verdict(report)) + agreed
        + details("How these figures came about", bullets(words.conditions(report, bold=False)))
        + (details("Accuracy under each value", more) if more else "") + details("What the figures mean", definitions(
            (TITLES.get(name, name.replace("_", " ")), f"{meaning}; {better} is better") for name, (better, meaning) in FIGURES.items()))))


def no_robustness(why: str) -> Section:
    """In its place where no classifiers could be tested."""
    return Section("Which classifiers survive when causes change?", note(f"Left out, since the data cannot be asked: {why}"))


def attributes(drawn: Path) -> Section:
    """What the attributes' model has learned."""
    return Section("Attributes, observed and sampled", (
        prose("The attributes' model is a Pyro program fitted by maximum likelihood, one mechanism for each variable. Its samples "
              "should have the distribution of the data; under an intervention on a cause, its effects should follow, and the rest "
              "should stay as it was.")
        + picture(drawn, "Distributions of observed and of sampled attributes",
                  "Grey: observed (training split). Blue: sampled from the model. Orange: sampled under the intervention; a value that it "
                  "holds is a line.")))


def samples(observed: Path, sampled: Path, means: Path) -> Section:
    """Images of the data beside images that the model makes up."""
    return Section("Images, observed and sampled", (
        prose("New images: attributes from their model, then an image from its mechanism given these attributes. This is the harder "
              "task: a counterfactual starts from the noise of a real image, a sample from none.")
        + side_by_side(picture(observed, "Observed images", "Observed (test split)."),
                       picture(means, "Sampled images without pixel noise", "Sampled, pixels at their mean."),
                       picture(sampled, "Sampled images", "The same samples with their pixels' noise."))))


def training(curves: Iterable[Path], folders: Iterable[Path]) -> Section:
    """How far each training got, and how it went there."""
    rows = []
    for folder in folders:
        last = MetricsLog.last(folder / METRICS)
        rows.append((folder.name, f"{last['step']:,}", f"{last['epoch']:.1f}", f"{last['seconds'] / 60:.1f}",
                     f"{last['valid']['loss']:.4g}"))
    return Section("Training", (
        table(("mechanism", "updates", "epochs", "minutes", "loss on validation, nats"), rows)
        + "".join(picture(path, f"Curves of {path.stem.replace('_', ' of ')}") for path in curves)
        + prose("The loss is that of one row of attributes, or of one image; smaller is better. Grey: training. Blue: validation, with "
                "averaged weights.")))


def limits(with_truth: Sequence[str]) -> Section:
    """What the figures above can and cannot show."""
    truth = (f"The truth here is that of a process somebody wrote down, and for interventions on {_listed(with_truth)} only. How well a "
             "model does on it says what the method can do, not how well it does on other data." if with_truth else
             "For this data set no true counterfactual is known, so nothing above measures whether the answers are right.")
    return Section("What this can and cannot claim", bullets((
        "The graph is an assumption. It comes from you, not from the data; with a wrong arrow, every answer can be wrong and still "
        "look plausible.",
        "Even with the right graph, data do not determine counterfactuals: models that fit all observations (and all experiments) "
        "equally well can disagree about a single image. Which one training finds depends on the mechanisms' form.",
        "Unobserved common causes of the variables are assumed away.",
        truth,
        "A counterfactual of a real image is the model's answer under these assumptions. It is not a prediction of what a treatment "
        "would do to a person.",
        "Beyond the range seen in training, and for combinations of causes seldom seen together, the model extrapolates.",
    )))


def commands(data: DataOptions, run: Path, minutes: float, seed: int, do: Sequence[str], example: Mapping[str, float],
             classifiers: ClassifierTask | None = None) -> Section:
    """Every step as the command that does it alone, for this data set and run folder.

    Args:
        do: interventions as a command line spells them.
        example: one intervention as Python spells it.
        classifiers: what classifiers were trained on, if any were.
    """
    source, folder = _flags(data), f"--run {shlex.quote(str(run))}"
    wanted = " ".join(f"--do {shlex.quote(text)}" for text in do)
    classified = "" if classifiers is None else (
        f"python -m experiments.train {_flags(classifiers.data)} --run {shlex.quote(str(classifiers.run))} --algorithm erm,groupdro,"
        f"cf-augmentation --seeds 5 --model {shlex.quote(str(run))} --overwrite\n"
        f"python -m experiments.robustness --run {shlex.quote(str(classifiers.run))} --model {shlex.quote(str(run))}\n"
        f"python -m dscm.export {folder} --do {shlex.quote(classifiers.tied + '~marginal')} --out intervened\n")
    return Section("Every step alone", (
        prose("From the folder of the project. Each command explains its flags with `--help`. A training that the folder holds is "
              "continued with `--resume` and begun anew with `--overwrite`.")
        + code(f"python -m pgm.train {source} {folder} --seed {seed}\n"
               f"python -m mechanisms.train {source} {folder} --minutes {minutes:g} --seed {seed}\n"
               f"python -m mechanisms.predictors {source} {folder} --seed {seed}\n"
               f"python -m dscm.counterfactual {folder} {wanted} --count 8 --out grid.png\n"
               f"python -m dscm.evaluate {folder} --seed {seed}\n"
               f"{classified}"
               f"python -m experiments.quickstart {source} {folder} --minutes {minutes:g} --seed {seed}")
        + prose("Or in Python:")
        + code("from dscm.model import DSCM\n"
               "from mechanisms.runs.folder import dataset_of\n\n"
               f"run = {str(run)!r}\n"
               "model, data = DSCM.load(run), dataset_of(run)\n"
               "observed = data.split(\"test\").batch([0, 1])                # {name: (2,)}, and image (2, C, H, W) in [0, 1]\n"
               f"answer = model.counterfactual(observed, {dict(example)!r})\n"
               "answer.image, answer.attributes                           # what would have been")))


def configuration(groups: Mapping[str, Mapping[str, Any]]) -> Section:
    """Titled groups of settings, folded away."""
    return Section("Configuration and versions", "".join(
        details(title, table(("setting", "value"), [(key, str(value)) for key, value in group.items()]))
        for title, group in groups.items()))


def _flags(data: DataOptions) -> str:
    words = ["--dataset", data.dataset, *(["--download"] if data.download else [])]
    words += ["--data-dir", str(data.data_dir)] if data.data_dir else []
    return shlex.join([*words, *(word for text in data.option for word in ("--option", text))])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

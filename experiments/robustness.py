"""``python -m experiments.robustness``: classifiers on intervened images, a table and a figure; and does a model predict it?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, Seed, check_ranges
from datasets.words import listed
from mechanisms.runs.command import run_command

if TYPE_CHECKING:
    from datasets.base import CausalDataset
    from datasets.task import Task
    from dscm.model import DSCM
    from experiments.stress.run import Contestant
    from experiments.stress.table import Report
    from experiments.training.store import Trained

COUNT = 1000


@dataclass(frozen=True)
class Options:
    """Test classifiers on images under interventions on spurious attributes, made by the true process and by a learned model.

    For instance: python -m experiments.robustness --run runs/classifiers --model runs/model
    Or your own:  python -m experiments.robustness --dataset colourmnist --classifier my_model.py:build --weights w.safetensors
    """

    data: DataOptions = field(default_factory=DataOptions)
    run: Path | None = None
    """Run folder with classifiers of experiments.train; its data set is used. Without it, --dataset and --classifier say what to test."""
    algorithm: str = ""
    """Only these algorithms of the run, comma-separated."""
    rule: Literal["last", "iid", "worst-group", "oracle"] = "last"
    """Which weights of a training: of its end, best on validation as observed, best in validation's worst group, or best under
    the test's own shifts (which looks at what is tested)."""
    model: Path | None = None
    """Run folder of a trained model that makes the same stress tests; without it that of --run, if it holds one."""
    classifier: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Your own classifier too: file.py:function, which builds a module, or an exported program file.pt2; may be repeated. Either is
    code and is executed: give none from someone you do not trust."""
    weights: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Weights of --classifier: .safetensors, or a state dict of torch; one for each, in the same order."""
    name: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What tables call --classifier; its file's name without it."""
    outputs: Literal["auto", "logits", "probabilities", "log-probabilities"] = "auto"
    """What each --classifier answers with; auto: logits, but it asks where a few answers all lie in [0, 1], as probabilities do."""
    label: str = ""
    """Attribute that is predicted; what the classifiers were trained for, or the data set's own, without it."""
    spurious: str = ""
    """Attributes that must not matter, comma-separated; what the classifiers were trained for, or the data set's own, without it."""
    split: Literal["train", "valid", "test"] = "test"
    """Where the images come from."""
    count: AtLeastOne[int | None] = None
    """How many images, at random, of distinct subjects; without it 1000, or as many as there are."""
    focus: Literal["saliency", "gradcam", "xgradcam", "deeplift", "integrated_gradients", "lime", "none"] = "saliency"
    """Where data sets know the foreground: the method that tells how much of what a classifier looks at is in it. Slow methods look at
    fewer images."""
    ood: Literal["mean", "random", "shuffle", "tile", "none"] = "mean"
    """Where data sets know the foreground: what fills its place to see whether a classifier misses it."""
    out: Path | None = None
    """Folder for robustness.md, .csv, .tsv, .json and .png; without it <run>/robustness."""
    seed: Seed[int] = 0
    """Of which images, and of the values that are drawn."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        """Raises UserError for a number or a combination that makes no sense."""
        check_ranges(self)
        for flag, text in (("--algorithm", self.algorithm), ("--spurious", self.spurious)):
            listed(text, flag)
        if self.run is None and not self.classifier:
            raise UserError("nothing to test: give --run, a folder with classifiers of experiments.train, or your own by --classifier")
        if self.run is None and (flags := [f"--{n}" for n in ("rule", "algorithm") if getattr(self, n) != getattr(Options, n)]):
            raise UserError(f"{' and '.join(flags)} chooses among the classifiers of a run: give --run, or leave it out")
        if self.run is not None and self.data != DataOptions():
            raise UserError(f"--run {self.run} says which data set is tested; leave --dataset and its options out")
        if self.outputs != "auto" and not self.classifier:
            raise UserError(f"--outputs {self.outputs} is about a --classifier of your own; the run's classifiers answer with logits")
        for flag, values in (("weights", self.weights), ("name", self.name)):
            if values and len(values) != len(self.classifier):
                raise UserError(f"--{flag} is given {len(values)} times, --classifier {len(self.classifier)} times; give one for each")

    @property
    def folder(self) -> Path:
        return self.out or (self.run or Path("runs")) / "robustness"


def task_for(options: Options, dataset: CausalDataset, trained: Sequence[Trained]) -> Task:
    """The task that the classifiers were trained for, with other spurious attributes if the flags name some.

    Raises:
        RunError: for classifiers of different labels, or of another label than ``--label``.
    """
    from datasets.task import task_of
    from mechanisms.runs.files import RunError

    tasks = [t.description["task"] for t in trained]
    labels = list(dict.fromkeys([t["label"] for t in tasks] + [options.label] * bool(options.label)))
    if len(labels) > 1:
        raise RunError(f"the classifiers of {options.run} and the flags are about different labels: {', '.join(labels)}. Name the ones to "
                       "compare: --algorithm, or leave --label out")
    spurious = tuple(listed(options.spurious, "--spurious")) or None
    if spurious is None and tasks:
        different = list(dict.fromkeys(tuple(t["spurious"]) for t in tasks))
        if len(different) > 1:
            raise RunError(f"the classifiers of {options.run} were trained with different spurious attributes "
                           f"({'; '.join(', '.join(names) for names in different)}); say which to intervene on: --spurious NAME[,NAME]")
        spurious = different[0]
    return task_of(dataset, labels[0] if labels else "", spurious)


def find_model(options: Options, dataset: CausalDataset) -> tuple[DSCM | None, Path | None]:
    """The learned model that makes stress tests, and its folder.

    Raises:
        RunError: for a model of another data set, or of other images.
    """
    from dscm.model import DSCM
    from experiments.training.counterfactuals import check_model
    from mechanisms.image.registry import FOLDER as IMAGE
    from mechanisms.training.devices import find_device
    from mechanisms.training.state import WEIGHTS
    from pgm.options import FOLDER as ATTRIBUTES

    folder = options.model
    if folder is None and options.run is not None and all((options.run / part / WEIGHTS).exists() for part in (ATTRIBUTES, IMAGE)):
        folder = options.run
    if folder is None:
        return None, None
    dscm = DSCM.load(folder, find_device(options.device))
    check_model(folder, dscm, dataset)
    return dscm, folder


def load_contestants(run: Path, algorithm: str, rule: str, device: str) -> list[Trained]:
    """The classifiers of a run folder, of the algorithms named or of all.

    Raises:
        RunError: without any; for an algorithm that the run has not.
    """
    from experiments.algorithms.registry import spelled
    from experiments.training.store import list_trained, load_trained
    from mechanisms.runs.files import RunError

    there, wanted = list_trained(run), [spelled(name) for name in listed(algorithm, "--algorithm")]
    known = list(dict.fromkeys(name for name, _ in there))
    if not there:
        begun = "".join(f". {line}" for line in left_out(run, wanted))
        raise RunError(f"{run} has no classifiers yet; train some: python -m experiments.train --run {shlex.quote(str(run))} --algorithm "
                       f"erm,irm{begun}")
    if unknown := [name for name in wanted if name not in known]:
        begun = "".join(f". {line}" for line in left_out(run, unknown))
        raise RunError(f"{run} has no classifier by {unknown[0]}; it has {', '.join(known)}{begun}")
    return [load_trained(run, name, seed, rule, device) for name, seed in there if not wanted or name in wanted]


def left_out(run: Path, wanted: Sequence[str]) -> list[str]:
    """Which classifiers, of the algorithms named or of all, were begun and cannot be tested, a sentence each."""
    from experiments.algorithms.registry import spelled
    from experiments.training.store import unfinished

    wanted = [spelled(name) for name in wanted]
    return [f"Left out: {name} (seed {seed}) {why}." for name, seed, why in unfinished(run) if not wanted or name in wanted]


def studied(trained: Sequence[Trained]) -> list[str]:
    """Which classifiers were trained on less than there is, see :mod:`experiments.training.study`, a sentence each."""
    told: dict[str, dict[str, None]] = {}
    for one in trained:
        for key in ("data_fraction", "box_noise"):
            if key in one.description:
                told.setdefault(f"--{key.replace('_', '-')} {one.description[key]:g}", {})[one.algorithm] = None
    return [f"Trained with {flag}: {', '.join(names)}." for flag, names in told.items()]


def robustness(options: Options) -> Report:
    """Stress-test what the options name; nothing is written.

    Raises:
        UserError: for a run, model, classifier or data set that cannot be used.
    """
    from datasets.schema import SchemaError
    from experiments.networks.own import open_own
    from experiments.stress.run import MAJORITY, Contestant, stress_test
    from experiments.stress.stresses import distinct_rows
    from experiments.stress.table import Report
    from experiments.training.rules import MEANING
    from experiments.training.store import list_trained
    from mechanisms.runs.folder import dataset_of
    from mechanisms.training.devices import find_device

    options.check()
    device = str(find_device(options.device))
    dataset = options.data.open() if options.run is None else dataset_of(options.run)
    asked = bool(options.algorithm or options.rule != Options.rule or not options.classifier)  # for classifiers of the run
    of_run = options.run is not None and (asked or bool(list_trained(options.run)))
    trained = load_contestants(options.run, options.algorithm, options.rule, device) if of_run else []
    task = task_for(options, dataset, trained)
    contestants: list[Contestant] = [Contestant(t.algorithm, t.seed, t.predict, t.network) for t in trained]
    rules = {t.algorithm: f"{options.rule}: {MEANING[options.rule]}" for t in trained}
    for k, spec in enumerate(options.classifier):
        weights, name = (given[k] if given else default for given, default in ((options.weights, None), (options.name, "")))
        own = open_own(spec, task, weights, name, device, options.outputs)
        if own.name in (*rules, MAJORITY):
            raise SchemaError(f"two classifiers are called {own.name!r}; give each its own --name")
        rules[own.name] = "as given"
        contestants.append(Contestant(own.name, None, own.predict, own.module()))
    dscm, folder = find_model(options, dataset)
    count = min(COUNT, len(distinct_rows(task, options.split))) if options.count is None else options.count
    stressed = stress_test(task, contestants, dscm, options.split, count, options.seed, device, options.focus, options.ood)
    about: Mapping[str, Any] = {"run": None if options.run is None else str(options.run), "model": None if folder is None else str(folder),
                                "rule": options.rule if trained else None}
    remarks = [*studied(trained), *(left_out(options.run, listed(options.algorithm, "--algorithm")) if of_run else [])]
    return Report(stressed, rules, about, remarks)


def main(options: Options) -> None:
    options.check()
    import warnings

    from dscm.evaluation.run import check_writable

    check_writable(options.folder / "robustness.md")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values beyond training's come from the data set's own shifts
        report = robustness(options)
    print(report.text(), flush=True)
    files = report.save(options.folder)
    print("\nwrote " + ", ".join(map(str, files)))


if __name__ == "__main__":
    run_command(Options, main)

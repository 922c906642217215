"""The quickstart's report: which sections it has, in which order."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.base import CausalDataset
from dscm.evaluation.evaluation import Evaluation
from experiments.report import sections
from experiments.report.html import Section
from experiments.report.training import MECHANISMS
from experiments.stress.results import StressResults
from mechanisms.runs.files import read_json, versions
from mechanisms.training.state import CONFIG
from pgm.interventions import Do


def compose(dataset: CausalDataset, run: Path, figures: Mapping[str, Path], interventions: Sequence[tuple[str, Do]],
            with_truth: Sequence[str], evaluation: Evaluation, stressed: tuple[StressResults, dict[str, Path]] | str, commands: Section,
            flags: Mapping[str, Any]) -> list[Section]:
    """All sections of the report, in order.

    Args:
        figures: what each shows → its path.
        interventions: of the grid, each with its heading.
        with_truth: variables whose interventions have a true image.
        stressed: the classifiers' stress tests with their figures, or why there are none.
        commands: the section of every step alone.
        flags: what was asked for, as plain values.
    """
    return [
        sections.data(dataset),
        sections.counterfactuals(figures["counterfactuals"], [label for label, _ in interventions], with_truth),
        sections.scores(evaluation),
        sections.attributes(figures["attributes"]),
        sections.samples(figures["observed"], figures["sampled"], figures["sampled_mean"]),
        sections.training([figures[f"training_{name}"] for name in MECHANISMS], [run / name for name in MECHANISMS]),
        sections.no_robustness(stressed) if isinstance(stressed, str) else sections.robustness(*stressed),
        sections.every_metric(evaluation, {name: path for name, path in figures.items() if name.startswith("metrics_")}),
        sections.limits(with_truth),
        commands,
        sections.configuration(settings(run, flags)),
    ]


def settings(run: Path, flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Titled groups: what was asked for and with which packages, and the configuration of each training of the run."""
    configs = {name: read_json(run / name / CONFIG, {"training": dict, "config": dict}) for name in MECHANISMS}
    others = {name: value for name, value in flags.items() if name != "data"}
    return {
        "This run": {**flags["data"], **others, "largest memory": f"{largest_memory() / 2**30:.2f} GiB", **versions()},
        **{f"Training of {name}": config["training"] for name, config in configs.items()},
        **{f"Mechanism {name}": config["config"] for name, config in configs.items()},
    }


def largest_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB on Linux

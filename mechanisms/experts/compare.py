"""Run folders of experts side by side: one row for each, over its seeds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mechanisms.experts.metrics import over_seeds
from mechanisms.experts.model import folder_of, some_seeds
from mechanisms.experts.options import DEFAULT_STEPS, DEFAULTS, ExpertsConfig
from mechanisms.runs.files import RunError, read_json
from mechanisms.runs.folder import recorded
from mechanisms.runs.tables import markdown, mean_over
from mechanisms.training.state import CONFIG

RESULT = "result.json"
_ASIDE = ("seed", "device", "workers", "checkpoint_seconds")  # of a training: what does not tell two runs apart
_RESULT = {"figures": dict, "usage": list, "seconds": (int, float)}  # what is read of it
_OF = {"width": "residual", "reach": "residual", "latent": "vae", "beta": "vae"}  # what only one kind of expert heeds
_COLUMNS = {"purity": "{:.3f}", "hungarian": "{:.3f}", "error_restored": "{:.1f}", "accuracy_restored": "{:.3f}"}


def results_of(run: Path, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Seed → what its ``result.json`` holds, of those of these seeds that were evaluated."""
    found = {seed: folder_of(run, seed) / RESULT for seed in seeds}
    return {seed: read_json(path, _RESULT, _again(run)) for seed, path in found.items() if path.exists()}


def _again(run: Path) -> str:
    return f"Remove it; python -m mechanisms.experts --run {shlex.quote(str(run))} --resume, with the same flags, makes it anew"


def alike(run: Path, seed: int) -> list[int]:
    """Seeds of a run folder that were trained as this one was."""
    asked = settings_of(run, seed)
    return [other for other in some_seeds(run) if settings_of(run, other) == asked]


def settings_of(run: Path, seed: int) -> dict[str, Any]:
    """What a training was asked for, flag → value, but for what makes no difference between two runs."""
    stored = read_json(folder_of(run, seed) / CONFIG, {"training": dict, "config": dict}, _again(run))
    return {name: value for name, value in {**stored["training"], **stored["config"]}.items() if name not in _ASIDE}


def changed(settings: Mapping[str, Any]) -> str:
    """The flags that make of the defaults what was asked for; empty where nothing was changed."""
    usual = asdict(replace(DEFAULTS, steps=DEFAULT_STEPS)) | asdict(ExpertsConfig())
    flags = []
    for name, value in settings.items():
        heeded = _OF.get(name, settings["expert"]) == settings["expert"]
        if name != "experts" and heeded and value is not None and value != usual.get(name):
            flag = name.replace("_", "-")
            flags.append(f"--{flag}" if value is True else f"--no-{flag}" if value is False else f"--{flag} {value}")
    return " ".join(flags)


def comparison(runs: Sequence[Path]) -> str:
    """A Markdown table, one row for each run folder: figures as mean ± standard error over its seeds, the worst purity, collapsed seeds.

    Raises:
        RunError: for a folder without evaluated experts.
    """
    lines = []
    for run in runs:
        if not (results := results_of(run, some_seeds(run))):
            raise RunError(f"{run} has experts, but none was evaluated; let their training end (--resume)")
        figures = over_seeds([result["figures"] for result in results.values()])
        settings = settings_of(run, min(results))
        mechanisms = recorded(run)["options"].get("transforms") or recorded(run)["dataset"]
        cells = [_cell(figures.get(name), text) for name, text in _COLUMNS.items()]
        purity = [result["figures"]["purity"] for result in results.values() if "purity" in result["figures"]]
        collapsed = f"{figures['collapsed']['count']} of {figures['collapsed']['of']}" if "collapsed" in figures else "–"
        seconds, _ = mean_over([result["seconds"] for result in results.values()])
        lines.append([run.name, mechanisms, str(settings["experts"]), changed(settings) or "nothing", str(len(results)),
                      *cells, f"{min(purity):.3f}" if purity else "–", collapsed, f"{seconds:.0f}"])
    header = ["run", "mechanisms", "experts", "changed", "seeds", "purity", "Hungarian", "error (of 255)", "restored read", "worst purity",
              "collapsed", "seconds"]
    return markdown(header, lines)


def _cell(figure: Mapping[str, float | None] | None, text: str) -> str:
    if figure is None:
        return "–"
    return text.format(figure["mean"]) + (f" ± {text.format(figure['error'])}" if figure["error"] is not None else "")

"""``python -m experiments.quickstart``: from data to a report that one can look at, in minutes on two cores.

Every stage is what a command does alone; the report's section "Every step alone" says which.
"""

from __future__ import annotations

import math
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from datasets.errors import UserError
from datasets.options import DataOptions
from mechanisms.command import run_command
from mechanisms.options import RunOptions, TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from datasets.base import CausalDataset
    from datasets.schema import Variable
    from dscm.model import DSCM
    from experiments.report import Section
    from pgm.interventions import Do

STAGES = 6
REPORT, SCORES, FIGURES = "report.html", "scores.json", "figures"
MECHANISMS = ("pgm", "image")  # their folders
_MOST_COLUMNS = 8  # of the grid's interventions, unless they are asked for
_TILES = 24  # observed and sampled images shown


@dataclass(frozen=True)
class Options:
    """From data to a report, in minutes: fits the mechanisms, merges them, draws counterfactuals and scores them."""

    data: DataOptions = field(default_factory=DataOptions)
    run: Path | None = None
    """Run folder; without it runs/quickstart, or runs/smoke with --smoke."""
    minutes: float = 4.0
    """Time to train the image mechanism."""
    do: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Interventions of the grid, such as thickness=1.5,3; may be repeated. Without it, a low and a high value of each attribute."""
    count: int = 5
    """Images in the grid."""
    scored: int = 256
    """Test images that are scored against the truth."""
    resume: bool = True
    """Keep what the folder's trainings have reached and continue them; --no-resume refuses a folder that holds any."""
    overwrite: bool = False
    """Throw away the trainings that the folder holds and begin anew."""
    smoke: bool = False
    """A few updates of everything, to see that it runs."""
    seed: int = 0
    """Of weights, noise and interventions."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the image mechanism's training; auto takes bf16 where the hardware has it."""

    @property
    def folder(self) -> Path:
        return self.run or Path("runs/smoke" if self.smoke else "runs/quickstart")

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        for name, least in (("count", 1), ("scored", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} must be at least {least}")
        if not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes {self.minutes} must be positive")


def quickstart(options: Options) -> Path:
    """Run all stages; returns the path of the report.

    Leaves in the run folder ``pgm/`` and ``image/`` (the mechanisms), ``figures/*.png``, ``scores.json``, ``report.html``.

    Raises:
        UserError: for data, options or a run folder that cannot be used; see also :func:`mechanisms.training.fit`.
    """
    import torch
    from rich.console import Console
    from rich.rule import Rule

    from dscm.model import DSCM
    from dscm.scores import draw_interventions, format_table, free_energy, score_truth
    from experiments.report import write_report
    from mechanisms.checkpoint import write_json
    from mechanisms.devices import find_device
    from mechanisms.runs import claim
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
        known = [drawn.variable for drawn in draw_interventions(dataset, "test", scored, options.seed)]
        wanted = options.do or default_do(dataset)
        interventions = parse_do(wanted, dataset.graph, training.attributes, torch.Generator().manual_seed(options.seed))
        console.print(f"{dataset.title}: {len(training):,} images to train on, {len(test):,} to test. True counterfactuals are known "
                      f"under interventions on: {', '.join(known) or 'nothing'}.")
    with stage(2, "Attributes: fit their causal model"):
        train_attributes(dataset, options)
    with stage(3, "Image: fit its mechanism, " + ("a few updates" if options.smoke else f"{options.minutes:g} minutes")):
        train_image(dataset, options)
    with stage(4, "Counterfactuals: merge both, and look"):
        dscm = DSCM.load(run, find_device(options.device))
        figures = draw_figures(dscm, dataset, interventions, run, count, options.seed)
        console.print("\n".join(str(path) for path in figures.values()), markup=False, soft_wrap=True)
    with stage(5, "Scores against the truth"):
        rows = score_truth(dscm, dataset, "test", scored, options.seed)
        bound = ((rows[0]["free_energy"], rows[0]["free_energy_se"]) if rows
                 else free_energy(dscm, test.batch(slice(0, scored)), options.seed))
        write_json(run / SCORES, {"truth": rows, "free_energy": {"mean": bound[0], "standard_error": bound[1], "images": scored}})
        console.print(format_table(rows), markup=False, soft_wrap=True)
    with stage(6, "Report"):
        minutes = (time.monotonic() - began) / 60
        facts = [("images to train on", f"{len(training):,}", ""), ("minutes, this run", f"{minutes:.1f}", ""),
                 *((f"error, {r['intervention']}", f"{r['l1']:.2f}", f"of 255; copying: {r['l1_identity']:.2f}") for r in rows)]
        lead = ("What would this very image have looked like, had one of its causes been otherwise? Mechanisms for each attribute and "
                f"for the image were fitted to the data of {dataset.title}; merged along its causal graph, they answer.")
        report = run / REPORT
        write_report(report, f"Counterfactual images: {dataset.title}", lead,
                     compose(dataset, options, figures, interventions, known, rows, bound, minutes), facts)
        console.print(str(report.resolve()), style="bold", markup=False, soft_wrap=True)
    console.print(f"Next: open the report; its section “Every step alone” has the commands. Another question:\n"
                  f"  python -m dscm.counterfactual {shlex.join(['--run', str(run), '--do', wanted[0]])} --count 8 --out grid.png\n"
                  f"More training: the same command with a larger --minutes. Your own data: --dataset my_scm.py (see docs/my_scm.py).",
                  markup=False, soft_wrap=True)
    return report


# ------------------------------------------------------------------------------------------------ training
def train_attributes(dataset: CausalDataset, options: Options) -> None:
    from pgm import train

    training = replace(train.DEFAULTS, seed=options.seed, device=options.device,
                       **({"steps": 20, "validations": 2} if options.smoke else {"steps": train.DEFAULT_STEPS}))
    _train(train.FOLDER, training, options,
           lambda where: train.train_attributes(dataset, train.Options(options.data, where, training)))


def train_image(dataset: CausalDataset, options: Options) -> None:
    from mechanisms import train
    from mechanisms.images import FOLDER

    training = replace(train.DEFAULTS, seed=options.seed, device=options.device, precision=options.precision,
                       **({"steps": 6, "validations": 2} if options.smoke else {"minutes": options.minutes}))
    _train(FOLDER, training, options, lambda where: train.train_image(dataset, train.Options(options.data, where, training)))


def _train(folder: str, training: TrainingConfig, options: Options, fit: Callable[[RunOptions], nn.Module]) -> None:
    """Train into ``folder`` of the run, or continue the training that it holds; one that has reached its budget stays as it is."""
    from mechanisms.bookkeeping import CHECKPOINT

    path = options.folder / folder
    resume = options.resume and not options.overwrite and (path / CHECKPOINT).exists()
    if resume:
        print(f"{path} holds a training: it goes on from there, unless it has reached its end (--overwrite begins anew)")
    fit(RunOptions(options.folder, resume=resume, overwrite=options.overwrite))


# ------------------------------------------------------------------------------------------------ looking
def default_do(dataset: CausalDataset) -> tuple[str, ...]:
    """A low and a high value of each attribute that can change the image; of many attributes, one value each.

    Raises:
        UserError: if no attribute can.
    """
    graph, training = dataset.graph, dataset.split("train").attributes
    names = [v.name for v in graph.attributes if graph.image.name in graph.descendants([v.name])][:_MOST_COLUMNS]
    if not names:
        raise UserError(f"nothing to ask of {dataset.title}: in its graph, no attribute causes the image")
    shares = (0.1, 0.9) if 2 * len(names) <= _MOST_COLUMNS else (0.9,)
    texts = []
    for name in names:
        variable, values = graph[name], training[name]
        if variable.discrete:
            seen = [k for k, count in enumerate(variable.statistics.counts) if count]
            words = [str(seen[round(share * (len(seen) - 1))]) for share in shares]
        else:
            words = [_rounded(variable, float(values.double().quantile(share))) for share in shares]
        texts.append(f"{name}={','.join(dict.fromkeys(words))}")
    return tuple(texts)


def _rounded(variable: Variable, value: float) -> str:
    """Rounded to about a tenth of the spread, but not out of what was seen in training."""
    seen, digits = variable.statistics, -math.floor(math.log10(variable.statistics.std))
    rounded = next((r for r in (round(value, digits), round(value, digits + 1)) if seen.minimum <= r <= seen.maximum), value)
    return f"{rounded:.10g}"


def draw_figures(dscm: DSCM, dataset: CausalDataset, interventions: Sequence[tuple[str, Do]], run: Path, count: int,
                 seed: int) -> dict[str, Path]:
    """``figures/*.png`` of the run: ``{what it shows: path}``."""
    import warnings

    import torch

    from dscm.counterfactual import answer
    from dscm.figures import attribute_figure, counterfactual_grid, save_figure, training_curves
    from mechanisms.bookkeeping import METRICS
    from mechanisms.checkpoint import MetricsLog
    from mechanisms.noise import seeded
    from pgm.interventions import resolve_do

    folder, graph, test = run / FIGURES, dataset.graph, dataset.split("test")
    index = torch.arange(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the grid marks what lies beyond the training data
        columns = answer(dscm, dataset, "test", index, interventions, seed=seed)
    paths = {"counterfactuals": save_figure(counterfactual_grid(test.batch(index), columns, graph), folder / "counterfactuals.png")}

    # an intervention that has effects among the attributes shows more than one that has none
    label, do = max(interventions, key=lambda asked: len(graph.descendants(asked[1])))
    rows = min(len(dataset.split("train")), 4000)
    training = {name: values[:rows] for name, values in dataset.split("train").attributes.items()}
    action = resolve_do(graph, do, training, rows)[0]
    sampled, intervened = (dscm.attributes.sample(rows, given, seeded(seed)) for given in (None, action))
    paths["attributes"] = save_figure(attribute_figure(training, sampled, graph, (label, intervened)), folder / "attributes.png")
    paths["observed"] = save_tiles(test.batch(slice(0, _TILES))["image"], folder / "observed.png")
    for name, temperature in (("sampled", 1.0), ("sampled_mean", 0.0)):
        images = dscm.sample(_TILES, generator=seeded(seed), temperature=temperature)["image"]
        paths[name] = save_tiles(images, folder / f"{name}.png")
    for name in MECHANISMS:
        curves = training_curves(MetricsLog.read(run / name / METRICS), f"{name}: loss and its terms, in nats")
        paths[f"training_{name}"] = save_figure(curves, folder / f"training_{name}.png")
    return paths


def save_tiles(images: torch.Tensor, path: Path) -> Path:
    """Images ``(B, C, H, W)`` in [0, 1] as one PNG, six in a row, enlarged without smoothing."""
    from torchvision.utils import make_grid, save_image

    from mechanisms.checkpoint import replacing

    shown = images.cpu() if images.shape[1] == 3 else images.cpu().mean(1, keepdim=True)
    tiles = make_grid(shown, nrow=6, padding=1, pad_value=1.0)
    scale = max(1, 96 // images.shape[-1])
    with replacing(path) as temporary:
        save_image(tiles.repeat_interleave(scale, 1).repeat_interleave(scale, 2), temporary, format="png")
    return path


# ------------------------------------------------------------------------------------------------ telling
def compose(dataset: CausalDataset, options: Options, figures: dict[str, Path], interventions: Sequence[tuple[str, Do]],
            known: Sequence[str], rows: Sequence[dict[str, Any]], bound: tuple[float, float], minutes: float) -> list[Section]:
    """All sections of the report, in order."""
    from experiments import sections
    from mechanisms.bookkeeping import CONFIG
    from mechanisms.checkpoint import read_json, versions

    labels = [label for label, _ in interventions]
    example = {name: float(value) for _, do in interventions for name, value in do.items() if not callable(value)}
    asked = asdict(options)
    configs = {name: read_json(options.folder / name / CONFIG) for name in MECHANISMS}
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
        sections.scores(rows, bound),
        sections.attributes(figures["attributes"]),
        sections.samples(figures["observed"], figures["sampled"], figures["sampled_mean"]),
        sections.training([figures[f"training_{name}"] for name in MECHANISMS], [options.folder / name for name in MECHANISMS]),
        sections.limits(known),
        sections.commands(options.data, options.folder, options.minutes, options.seed, options.do or default_do(dataset),
                          dict(list(example.items())[:1])),
        sections.configuration(settings),
    ]


if __name__ == "__main__":
    run_command(Options, quickstart)

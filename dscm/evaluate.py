"""``python -m dscm.evaluate``: every metric of a run's counterfactuals, each beside its floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datasets.errors import UserError
from datasets.ranges import Sample, Seed, check_ranges
from dscm.evaluation.config import EvaluationConfig
from mechanisms.runs.command import run_command

if TYPE_CHECKING:

    from datasets.base import CausalDataset
    from dscm.evaluation.evaluation import Evaluation
    from dscm.evaluation.questions import Questions
    from mechanisms.anticausal.model import Predictors

COUNT = 1000


@dataclass(frozen=True)
class Options:
    """Score a run's counterfactuals by every metric there is, each beside its floors.

    For instance: python -m dscm.evaluate --run runs/model --out metrics.json --interventions interventions.json
    """

    run: Path = Path("runs/model")
    """Run folder with both mechanisms, and with predictors if there are to be figures that need them."""
    out: Path | None = None
    """File to write, with figures beside it; without it metrics.json in the run folder."""
    interventions: Path | None = None
    """File of the interventions, to be shared by all models: read if it exists, else drawn and written. Without it they are
    drawn, and written beside --out if no other ones are there."""
    split: Literal["train", "valid", "test"] | None = None
    """Where the observed images come from; without it test, or what the file of interventions says."""
    count: Sample[int | None] = None
    """How many images, from the first; without it 1000, or as many as the split has subjects or the file of interventions has."""
    seed: Seed[int | None] = None
    """Of interventions and noise; without it 0, or what the file of interventions says."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    config: EvaluationConfig = field(default_factory=EvaluationConfig)


def find_questions(options: Options, dataset: CausalDataset, out: Path) -> tuple[Questions, str]:
    """The interventions to ask about, and a line that says where they are kept.

    Raises:
        RunError: for a file of other interventions than the flags say, see also :meth:`dscm.evaluation.questions.Questions.load`.
        SchemaError: for a count that the split has not.
    """
    from dscm.evaluation.questions import Questions, draw_questions
    from mechanisms.runs.files import RunError

    path = options.interventions
    if path is not None and path.exists():
        questions = Questions.load(path, dataset, options.split)
        if options.seed not in (None, questions.seed):
            raise RunError(f"{path} was drawn with --seed {questions.seed}, not {options.seed}; leave the flag out, or name another file")
        if options.count is not None and not 2 <= options.count <= len(questions):
            raise RunError(f"--count {options.count}: {path} asks about {len(questions)} images; take 2..{len(questions)}")
        asked = tuple(q.first(options.count or len(questions)) for q in questions.questions)
        return replace(questions, questions=asked), f"interventions: read from {path}"
    split = options.split or "test"
    subjects = dataset.distinct_subjects(split)
    distinct = len(dataset.split(split)) if subjects is None else len(subjects.unique())
    count = min(COUNT, distinct) if options.count is None else options.count
    questions = draw_questions(dataset, split, count, options.seed or 0)
    kept = path or out.with_name("interventions.json")
    if path is None and kept.exists():
        try:
            same = Questions.load(kept, dataset, split).about() == questions.about()
        except UserError:
            same = False
        return questions, f"interventions: {'as in' if same else 'drawn by the seed; not saved, since there are others in'} {kept}"
    questions.save(kept)
    return questions, f"interventions: drawn and written to {kept}"


def find_predictors(run: Path, device: str) -> Predictors | None:
    """The run's predictors; None if none were trained.

    Raises:
        RunError: see :func:`mechanisms.anticausal.model.load_predictors`.
    """
    from mechanisms.anticausal.model import FOLDER, load_predictors
    from mechanisms.training.state import WEIGHTS

    return load_predictors(run, device) if (run / FOLDER / WEIGHTS).exists() else None


def check_writable(path: Path) -> None:
    """Raises RunError for a place that no file can be written to, before anything is computed."""
    from tempfile import TemporaryFile

    from mechanisms.runs.files import RunError

    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}. Choose another --out") from error


def save(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write the file, then its figures; each whole or not at all."""
    from dscm.evaluation.figures import figures_of
    from dscm.figures.style import save_figure

    figures = figures_of(evaluation.scores)
    evaluation.save(out)
    return [out, *(save_figure(figure, out.with_name(f"{out.stem}_{name}.png")) for name, figure in figures.items())]


def main(options: Options) -> None:
    options.config.check()
    check_ranges(options)
    out = options.out or options.run / "metrics.json"

    from dscm.counterfactual import open_run
    from dscm.evaluation.evaluation import evaluate
    from dscm.evaluation.table import format_table

    dscm, dataset = open_run(options.run, options.device)
    predictors = find_predictors(options.run, str(dscm.device))
    check_writable(out)
    questions, told = find_questions(options, dataset, out)
    evaluation = evaluate(dscm, dataset, questions, predictors, options.config, options.run)
    files = save(evaluation, out)
    print(format_table(evaluation))
    print(_said(told, files))


def _said(told: str, files: Sequence[Path]) -> str:
    return f"\n{told}\nwrote " + ", ".join(map(str, files))


if __name__ == "__main__":
    run_command(Options, main)

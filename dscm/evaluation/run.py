"""Scores the counterfactuals of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from datasets.base import CausalDataset
from datasets.errors import UserError
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation, evaluate
from dscm.evaluation.figures import figures_of
from dscm.evaluation.questions import Questions, draw_questions
from dscm.evaluation.table import format_table
from dscm.figures.style import save_figure
from dscm.metrics.registry import families
from dscm.runs import find_predictors, open_run
from mechanisms.runs.files import RunError

COUNT = 1000


def evaluate_run(run: Path, out: Path | None = None, interventions: Path | None = None, split: str | None = None, count: int | None = None,
                 seed: int | None = None, device: str = "auto", config: EvaluationConfig | None = None) -> Evaluation:
    """Write ``metrics.json`` and its figures, and print the table; arguments as in :class:`dscm.evaluation.options.Options`.

    Raises:
        UserError: see :func:`dscm.runs.open_run`, :func:`find_questions` and :func:`dscm.evaluation.evaluation.evaluate`.
    """
    config, out = config or EvaluationConfig(), out or run / "metrics.json"
    families(config.parts)
    dscm, dataset = open_run(run, device)
    predictors = find_predictors(run, str(dscm.device))
    check_writable(out)
    questions, where = find_questions(dataset, out, interventions, split, count, seed)
    evaluation = evaluate(dscm, dataset, questions, predictors, config, run)
    files = save(evaluation, out)
    print(format_table(evaluation))
    print(f"\n{where}\nwrote " + ", ".join(map(str, files)))
    return evaluation


def find_questions(dataset: CausalDataset, out: Path, interventions: Path | None = None, split: str | None = None, count: int | None = None,
                   seed: int | None = None) -> tuple[Questions, str]:
    """The interventions to ask about, and a line that says where they are kept.

    Raises:
        RunError: for a file of other interventions than the flags say, see also :meth:`dscm.evaluation.questions.Questions.load`.
        SchemaError: for a count that the split has not.
    """
    if interventions is not None and interventions.exists():
        questions = Questions.load(interventions, dataset, split)
        if seed not in (None, questions.seed):
            raise RunError(f"{interventions} was drawn with --seed {questions.seed}, not {seed}; leave the flag out, or name another file")
        if count is not None and not 2 <= count <= len(questions):
            raise RunError(f"--count {count}: {interventions} asks about {len(questions)} images; take 2..{len(questions)}")
        selected = tuple(q.first(count or len(questions)) for q in questions.questions)
        return replace(questions, questions=selected), f"interventions: read from {interventions}"
    split = split or "test"
    subjects = dataset.distinct_subjects(split)
    distinct = len(dataset.split(split)) if subjects is None else len(subjects.unique())
    count = min(COUNT, distinct) if count is None else count
    questions = draw_questions(dataset, split, count, seed or 0)
    kept = interventions or out.with_name("interventions.json")
    if interventions is None and kept.exists():
        try:
            same = Questions.load(kept, dataset, split).about() == questions.about()
        except UserError:
            same = False
        return questions, f"interventions: {'as in' if same else 'drawn by the seed; not saved, since there are others in'} {kept}"
    questions.save(kept)
    return questions, f"interventions: drawn and written to {kept}"


def check_writable(path: Path) -> None:
    """Raises RunError for a place that no file can be written to, before anything is computed."""
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
    figures = figures_of(evaluation.scores)
    evaluation.save(out)
    return [out, *(save_figure(figure, out.with_name(f"{out.stem}_{name}.png")) for name, figure in figures.items())]

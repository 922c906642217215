"""Counterfactual training of a run's image mechanism into another run, judged before and after."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets.base import CausalDataset
from dscm.evaluation.before_after import summary
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import evaluate
from dscm.evaluation.questions import Questions, draw_questions
from dscm.finetuning.config import FinetuneConfig
from dscm.finetuning.objective import CounterfactualTraining
from dscm.finetuning.options import DEFAULT_MINUTES, DEFAULTS
from dscm.jitter.spread import mechanism_hash
from dscm.model import DSCM
from dscm.runs import open_run
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.anticausal.model import Predictors, load_predictors
from mechanisms.image.registry import FOLDER, describe
from mechanisms.runs.files import RunError, read_json, replacing, write_json
from mechanisms.runs.folder import RUN
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.devices import make_accelerator
from mechanisms.training.hooks import Hooks
from mechanisms.training.loop import fit
from mechanisms.training.state import CHECKPOINT
from pgm.options import FOLDER as ATTRIBUTES

RECORD, KIND = "finetune.json", "finetuning"
COUNT = 500
_AGAIN = "Restore a copy of it, or choose another --into"
_COPIED = (ATTRIBUTES, PREDICTORS)


def finetune(run: RunOptions, into: Path | None = None, training: TrainingConfig = DEFAULTS, config: FinetuneConfig = FinetuneConfig(),
             teachers: Path | None = None, count: int | None = None) -> dict[str, Any] | None:
    """Train ``run``'s image mechanism into ``into/image``; what ``finetune.json`` then holds, of the first process.

    Arguments are as in :class:`dscm.finetuning.options.Options`.

    ``into`` becomes a complete run: ``run.json``, attributes and predictors are copies, and ``finetune.json`` says what was
    trained from which files, and how the model did before and after.

    Raises:
        RunError: for a run without mechanisms or predictors, or with such of different graphs; for a folder ``into``
            that is the run itself or holds anything but a fine-tuning of it; see also :func:`mechanisms.training.loop.fit`.
        SchemaError: for an unknown variable, or a count that the validation split has not.
    """
    training, source = training.or_budget(minutes=DEFAULT_MINUTES), run.run
    training.check()
    config.check()
    into = into or source.with_name(f"{source.name}-finetuned")
    dscm, dataset = open_run(source, "cpu")
    judges, taught_by = load_predictors(source), load_predictors(teachers or source)
    if difference := taught_by.graph.difference(dscm.graph):
        raise RunError(f"the teachers in {teachers} are of another graph or training split than {source}: {difference}")
    train, valid = dataset.split("train"), dataset.split("valid")
    questions = draw_questions(dataset, "valid", min(COUNT, len(valid)) if count is None else count, training.seed)
    module = CounterfactualTraining(dscm.image, dscm.attributes, taught_by, config)
    origin, settings = _origin(source, teachers or source), asdict(config)
    record = {"kind": KIND, "run": str(source.resolve()), "origin": origin, "config": settings, "questions": questions.about(),
              "before": None, "after": None, "worse": None}
    accelerator = make_accelerator(training.device, training.precision)
    resumes = _check_target(into, record, run)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked

    module.to(accelerator.device)
    if resumes:
        record["before"] = read_json(into / RECORD, {"before": list}, _AGAIN)["before"]
    elif accelerator.is_main_process:
        record["before"] = _scores(dscm, dataset, questions, judges)
        write_json(into / RECORD, record)
    if accelerator.is_main_process:  # on resuming too: a kill may have come between the record and these
        _copy(source, into)
    if not (resumes and (into / FOLDER / CHECKPOINT).exists()):  # which has the bounds
        module.measure(train, valid, training)
    description = {**describe(dscm.image), "finetuned": {**origin, **settings}}
    fit(module, train, valid, training, into / FOLDER, description, replace(run, run=into),
        Hooks(kept=dscm.image, criterion=module.criterion))
    if not accelerator.is_main_process:
        return None
    record["after"] = _scores(dscm, dataset, questions, judges)
    text, record["worse"] = summary(record["before"], record["after"])
    write_json(into / RECORD, record)
    print(f"{len(questions)} images of {dataset.title}'s valid split\n\n{text}\n\nwrote {into}")
    return record


def _scores(dscm: DSCM, dataset: CausalDataset, questions: Questions, predictors: Predictors) -> list[dict[str, Any]]:
    """Every score that one answer to each question gives, as plain values."""
    config = EvaluationConfig(draws=0, cycles=(1, 10), steps=(2,), temperatures=(0.1,))
    return [score.to_dict() for score in evaluate(dscm, dataset, questions, predictors, config).scores]


def _origin(run: Path, teachers: Path) -> dict[str, str]:
    """A hash of each mechanism that the training depends on."""
    return {**{folder: mechanism_hash(run / folder) for folder in ("image", *_COPIED)}, "teachers": mechanism_hash(teachers / PREDICTORS)}


def _check_target(into: Path, record: Mapping[str, Any], run: RunOptions) -> bool:
    """Whether ``into`` holds a fine-tuning of the very mechanisms that ``record`` names, which is to be continued.

    Raises:
        RunError: where it holds something else, or neither --resume nor --overwrite was said.
    """
    if into.resolve() == run.run.resolve():
        raise RunError(f"--into {into} is the run itself, which is left as it is; choose another folder")
    if not into.exists() or (into.is_dir() and not any(p.is_dir() or p.suffix == ".json" for p in into.iterdir())):
        return False  # nothing of a run; a log may lie there
    if not (into / RECORD).exists() or (earlier := read_json(into / RECORD, {}, _AGAIN)).get("kind") != KIND:
        raise RunError(f"{into} already exists and holds no fine-tuning; choose another --into")
    if run.overwrite:
        return False
    if not run.resume:
        raise RunError(f"{into} already holds a fine-tuning; --resume continues it, --overwrite begins anew")
    earlier = read_json(into / RECORD, dict.fromkeys(("origin", "config", "questions"), dict), _AGAIN)
    for part in ("origin", "config", "questions"):
        now, then = record[part], earlier[part]
        if changed := [f"{name} {then.get(name)} → {now[name]}" for name in now if now[name] != then.get(name)]:
            what = f"{run.run} has changed since: its" if part == "origin" else "this one has another"
            raise RunError(f"cannot resume the fine-tuning in {into}; {what} {'; '.join(changed)}. Choose another --into, or --overwrite")
    return True


def _copy(source: Path, into: Path) -> None:
    """Run record, attributes and predictors, each file whole or not at all."""
    for path in (source / RUN, *(p for folder in _COPIED for p in (source / folder).iterdir())):
        if path.is_file() and not path.name.startswith("."):
            with replacing(into / path.relative_to(source)) as temporary:
                shutil.copyfile(path, temporary)

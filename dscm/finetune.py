"""``python -m dscm.finetune``: counterfactual training of a run's image mechanism, and what it has made better and worse."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.ranges import Sample, check_ranges
from dscm.finetuning.config import FinetuneConfig
from mechanisms.runs.command import run_command
from mechanisms.training.config import RunOptions, TrainingConfig

if TYPE_CHECKING:
    from datasets.base import CausalDataset
    from dscm.evaluation.questions import Questions
    from dscm.model import DSCM
    from mechanisms.anticausal.model import Predictors

RECORD, KIND = "finetune.json", "finetuning"
COUNT = 500
_AGAIN = "Restore a copy of it, or choose another --into"
DEFAULTS = TrainingConfig(batch_size=32, learning_rate=1e-4, beta2=0.99, warmup=50, weight_decay=0.01, ema=0.99, keep="best")
DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class Options:
    """Train a run's image mechanism on its own counterfactuals, judged by its predictors, into another run; without a budget, 10 minutes.

    Attributes and predictors are copied, nothing of --run is changed. Before and after, the validation split is asked the same
    questions.
    """

    run: RunOptions = field(default_factory=RunOptions)
    into: Path | None = None
    """Run folder of the result; without it, that of --run with -finetuned appended."""
    training: TrainingConfig = DEFAULTS
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    teachers: Path | None = None
    """Another run folder whose predictors teach, such as ones of another seed; then those of --run, which judge, have taught nothing."""
    count: Sample[int | None] = None
    """How many validation images are asked before and after; without it 500, or as many as there are."""


def finetune(options: Options) -> dict[str, Any] | None:
    """Train ``run``'s image mechanism into ``into/image``; what ``finetune.json`` then holds, of the first process.

    ``into`` becomes a complete run: ``run.json``, attributes and predictors are copies, and ``finetune.json`` says what was
    trained from which files, and how the model did before and after.

    Raises:
        RunError: for a run without mechanisms or predictors, or with such of different graphs; for a folder ``into``
            that is the run itself or holds anything but a fine-tuning of it; see also :func:`mechanisms.training.loop.fit`.
        SchemaError: for an unknown variable, or a count that the validation split has not.
    """
    from dscm.counterfactual import open_run
    from dscm.evaluation.before_after import summary
    from dscm.evaluation.questions import draw_questions
    from dscm.finetuning.objective import CounterfactualTraining
    from mechanisms.anticausal.model import load_predictors
    from mechanisms.image.registry import FOLDER, describe
    from mechanisms.runs.files import RunError, read_json, write_json
    from mechanisms.training.devices import make_accelerator
    from mechanisms.training.hooks import Hooks
    from mechanisms.training.loop import fit
    from mechanisms.training.state import CHECKPOINT

    training, source = options.training.or_budget(minutes=DEFAULT_MINUTES), options.run.run
    training.check()
    options.config.check()
    check_ranges(options)
    into = options.into or source.with_name(f"{source.name}-finetuned")
    dscm, dataset = open_run(source, "cpu")
    predictors, teachers = load_predictors(source), load_predictors(options.teachers or source)
    if difference := teachers.graph.difference(dscm.graph):
        raise RunError(f"the teachers in {options.teachers} are of another graph or training split than {source}: {difference}")
    train, valid = dataset.split("train"), dataset.split("valid")
    questions = draw_questions(dataset, "valid", min(COUNT, len(valid)) if options.count is None else options.count, training.seed)
    module = CounterfactualTraining(dscm.image, dscm.attributes, teachers, options.config)
    origin, config = _origin(source, options.teachers or source), asdict(options.config)
    record = {"kind": KIND, "run": str(source.resolve()), "origin": origin, "config": config, "questions": questions.about(),
              "before": None, "after": None, "worse": None}
    accelerator = make_accelerator(training.device, training.precision)
    resumes = _check_target(into, record, options.run)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked

    module.to(accelerator.device)
    if resumes:
        record["before"] = read_json(into / RECORD, {"before": list}, _AGAIN)["before"]
    elif accelerator.is_main_process:
        record["before"] = _scores(dscm, dataset, questions, predictors)
        write_json(into / RECORD, record)
    if accelerator.is_main_process:  # on resuming too: a kill may have come between the record and these
        _copy(source, into)
    if not (resumes and (into / FOLDER / CHECKPOINT).exists()):  # which has the bounds
        module.measure(train, valid, training)
    description = {**describe(dscm.image), "finetuned": {**origin, **config}}
    fit(module, train, valid, training, into / FOLDER, description, replace(options.run, run=into),
        Hooks(kept=dscm.image, criterion=module.criterion))
    if not accelerator.is_main_process:
        return None
    record["after"] = _scores(dscm, dataset, questions, predictors)
    text, record["worse"] = summary(record["before"], record["after"])
    write_json(into / RECORD, record)
    print(f"{len(questions)} images of {dataset.title}'s valid split\n\n{text}\n\nwrote {into}")
    return record


def _scores(dscm: DSCM, dataset: CausalDataset, questions: Questions, predictors: Predictors) -> list[dict[str, Any]]:
    """Every score that one answer to each question gives, as plain values."""
    from dscm.evaluation.config import EvaluationConfig
    from dscm.evaluation.evaluation import evaluate

    config = EvaluationConfig(draws=0, cycles=(1, 10), steps=(2,), temperatures=(0.1,))
    return [score.to_dict() for score in evaluate(dscm, dataset, questions, predictors, config).scores]


def _origin(run: Path, teachers: Path) -> dict[str, str]:
    """A hash of each mechanism that the training depends on."""
    from dscm.jitter import mechanism_hash
    from mechanisms.anticausal.model import FOLDER

    return {**{folder: mechanism_hash(run / folder) for folder in ("image", *_copied())}, "teachers": mechanism_hash(teachers / FOLDER)}


def _copied() -> tuple[str, ...]:
    from mechanisms.anticausal.model import FOLDER as PREDICTORS
    from pgm.train import FOLDER as ATTRIBUTES

    return ATTRIBUTES, PREDICTORS


def _check_target(into: Path, record: Mapping[str, Any], options: RunOptions) -> bool:
    """Whether ``into`` holds a fine-tuning of the very mechanisms that ``record`` names, which is to be continued.

    Raises:
        RunError: where it holds something else, or neither --resume nor --overwrite was said.
    """
    from mechanisms.runs.files import RunError, read_json

    if into.resolve() == options.run.resolve():
        raise RunError(f"--into {into} is the run itself, which is left as it is; choose another folder")
    if not into.exists() or (into.is_dir() and not any(p.is_dir() or p.suffix == ".json" for p in into.iterdir())):
        return False  # nothing of a run; a log may lie there
    if not (into / RECORD).exists() or (earlier := read_json(into / RECORD, {}, _AGAIN)).get("kind") != KIND:
        raise RunError(f"{into} already exists and holds no fine-tuning; choose another --into")
    if options.overwrite:
        return False
    if not options.resume:
        raise RunError(f"{into} already holds a fine-tuning; --resume continues it, --overwrite begins anew")
    earlier = read_json(into / RECORD, dict.fromkeys(("origin", "config", "questions"), dict), _AGAIN)
    for part in ("origin", "config", "questions"):
        now, then = record[part], earlier[part]
        if changed := [f"{name} {then.get(name)} → {now[name]}" for name in now if now[name] != then.get(name)]:
            what = f"{options.run} has changed since: its" if part == "origin" else "this one has another"
            raise RunError(f"cannot resume the fine-tuning in {into}; {what} {'; '.join(changed)}. Choose another --into, or --overwrite")
    return True


def _copy(source: Path, into: Path) -> None:
    """Run record, attributes and predictors, each file whole or not at all."""
    from mechanisms.runs.files import replacing
    from mechanisms.runs.folder import RUN

    for path in (source / RUN, *(p for folder in _copied() for p in (source / folder).iterdir())):
        if path.is_file() and not path.name.startswith("."):
            with replacing(into / path.relative_to(source)) as temporary:
                shutil.copyfile(path, temporary)


def main(options: Options) -> None:
    finetune(options)


if __name__ == "__main__":
    run_command(Options, main)

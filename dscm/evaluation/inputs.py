"""What the metrics of one evaluation are computed from: the model's answers, what is read off them, and other real images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from datasets.base import CausalDataset
from datasets.schema import SchemaError
from dscm.capabilities import Model
from dscm.evaluation.answers import Case, Evaluator
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.questions import Questions
from dscm.evaluation.readings import CaseReadings, Reader, Reading, ReferenceSet
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.anticausal.model import Predictors
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded


class MetricInputs:
    """All that a family of metrics may need; what takes time is computed when it is first asked for, and once.

    Attributes:
        observed: attributes ``(B,)`` and ``image`` ``(B, C, H, W)`` of the rows that are asked about, on the CPU.
        evaluator: asks the model further questions.
        reader: reads attributes off images.
        border: outermost pixels that image distances leave out; ``borders``: with it and without.
        missing: what could not be computed → why, and what would help; families add to it.
        seconds: that each part took.
        how_to_train_predictors: the command, for messages.
    """

    def __init__(self, model: Model, dataset: CausalDataset, questions: Questions, predictors: Predictors | None,
                 config: EvaluationConfig, run: Path | None) -> None:
        self.model, self.dataset, self.questions, self.predictors, self.config = model, dataset, questions, predictors, config
        self.observed = dataset.split(questions.split).batch(questions.index)
        self.evaluator = Evaluator(model, self.observed, config, questions.seed)
        self.reader = Reader(dataset, predictors, config.batch_size)
        self.border = dataset.border
        self.borders = (self.border, 0) if self.border else (0,)
        self.how_to_train_predictors = f"train them: python -m mechanisms.{PREDICTORS} --run {run or 'RUN'}"
        self.missing: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Charge the body's seconds to ``part``, less those that it has charged to others."""
        began, others = time.perf_counter(), sum(self.seconds.values())
        yield
        self.seconds[part] = round(max(0.0, time.perf_counter() - began - sum(self.seconds.values()) + others), 3)

    @contextmanager
    def missing_if_refused(self, what: str) -> Iterator[None]:
        """What the body cannot ask or compute is missing, with the reason that it gives."""
        try:
            yield
        except SchemaError as error:
            self.missing[what] = str(error)

    @cached_property
    def cases(self) -> list[Case]:
        """The model's answer to every question that it does not refuse, beside the truth.

        Raises:
            RunError: if it answers none.
        """
        cases = []
        with self.timed("answers"):
            for question in self.questions.questions:
                with self.missing_if_refused(f"every metric under {question.name}"):
                    cases.append(self.evaluator.case(question, self.dataset, self.questions.split))
        if not cases:
            raise RunError(f"the model answers none of the questions: {'; '.join(self.missing.values())}")
        return cases

    @property
    def real(self) -> Reading:
        """What is read off the observed images."""
        return self._read[0]

    @property
    def readings(self) -> list[CaseReadings]:
        """What is read off the images of each case."""
        return self._read[1]

    @property
    def references(self) -> ReferenceSet | None:
        """Real images that are not asked about, or, in a small split, one half of it against the other; None without predictors."""
        return None if self.predictors is None else self._read[2]

    @cached_property
    def _read(self) -> tuple[Reading, list[CaseReadings], ReferenceSet | None]:
        cases = self.cases
        with self.timed("readings"):
            real = self.reader(self.observed["image"])
            readings = [CaseReadings(case, self.reader(case.answer["image"]), self.reader(case.truth["image"]) if case.truth else None)
                        for case in cases]
            return real, readings, None if self.predictors is None else self._references()

    def _references(self) -> ReferenceSet:
        split, index, generator = self.dataset.split(self.questions.split), self.questions.index, seeded(self.questions.seed)
        count = min(len(index), len(split) // 2)
        chosen = torch.randperm(len(index), generator=generator)[:count]
        subjects = self.dataset.distinct_subjects(self.questions.split)
        subjects = torch.arange(len(split)) if subjects is None else subjects
        free = ~torch.isin(subjects, subjects[index])
        if free.sum() < count:
            free[:] = True
            free[index[chosen]] = False
        rows = free.nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)[:count]]
        features = [self.reader.features(split.batch(chunk)["image"]) for chunk in rows.split(self.config.batch_size)]
        return ReferenceSet(chosen, torch.cat(features), {name: values[rows] for name, values in split.attributes.items()})

"""What the pictures of the metrics show: a few images, and the answers of runs, of the truth and of models that are of no use.

The useless ones are made, not trained. Copying x changes nothing; a blurred truth is right wherever it is coarse; a
nearest training image has the attributes that were asked for, and shows something else. Each wins some metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from datasets.base import CausalDataset
from datasets.schema import SchemaError
from dscm.evaluation.answers import Case, Evaluator
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.inputs import MetricInputs
from dscm.evaluation.questions import Question, draw_questions
from dscm.evaluation.readings import CaseReadings, ReferenceSet
from dscm.metrics.effectiveness import effectiveness_scores
from dscm.metrics.minimality import change_scores, divergence_score, same_value
from dscm.metrics.score import Score
from dscm.metrics.truth import image_error, inner, psnr, truth_scores
from dscm.model import DSCM
from experiments.comparison.bounds import Identity, Truth
from mechanisms.anticausal.model import Predictors

COPY, TRUE, BLUR, NEAREST = "x, copied", "x°, the truth", "x°, blurred", "another image"
Values = Mapping[str, Tensor]


class Scene:
    """One question about some images of the test split, and everybody's answers.

    Attributes:
        question: the first of the graph whose true image is known.
        observed, truth: of all images, on the CPU.
        shown: rows that are shown; ``cycled``: the one among those that go through repeated interventions.

    Args:
        models: runs by name, the one that is illustrated first; ``run``: its folder, which messages name.
        predictors: None where none were trained; some pictures cannot be drawn then.
        count: images that means are taken over, at most; ``shown``: how many of them are shown.
        seed: of interventions and noise.

    Raises:
        SchemaError: for a data set that knows no true counterfactual image.
        RunError: for models of different data.
    """

    def __init__(self, models: Mapping[str, DSCM], dataset: CausalDataset, predictors: Predictors | None, run: Path,
                 config: EvaluationConfig, *, count: int, shown: int, seed: int = 0) -> None:
        self.models, self.dataset, self.config, self.seed, self.border = models, dataset, config, seed, dataset.border
        drawn = draw_questions(dataset, "test", min(count, len(dataset.split("test"))), seed)
        with_truth = [question for question in drawn.questions if dataset.has_truth([question.variable])]
        if not with_truth:
            raise SchemaError(f"{dataset.title} knows no true counterfactual image, so nothing shows whether a metric is right")
        self.question, self.others = with_truth[0], with_truth[1:]
        self.questions = replace(drawn, questions=tuple(with_truth[:1]))
        self.inputs = MetricInputs(next(iter(models.values())), dataset, self.questions, predictors, config, run)
        self.observed, self.truth = self.inputs.observed, self.inputs.cases[0].truth
        change = image_error(self.observed["image"], self.truth["image"])
        self.shown = (change >= change.median()).nonzero().flatten()[:shown]
        self.cycled = int(self.shown[0]) if self.shown[0] < config.cycle_images else 0
        self._seen: dict[str, CaseReadings] = {}

    @property
    def first(self) -> str:
        """Name of the run that is illustrated."""
        return next(iter(self.models))

    @property
    def second(self) -> Question:
        """Another question whose answer is known, also together with the first.

        Raises:
            SchemaError: where there is none.
        """
        for question in self.others:
            if self.dataset.has_truth([self.question.variable, question.variable]):
                return question
        raise SchemaError(f"it takes two interventions whose true images {self.dataset.title} knows, alone and together")

    # ------------------------------------------------------------------------------------------------ who answers
    @cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """The runs, and the two of the others that are models: they can be asked again about what they have made."""
        with_truth = replace(self.questions, questions=(self.question, *self.others))
        bounds = {COPY: Identity(self.dataset.graph), TRUE: Truth(self.dataset, with_truth)}
        fresh = {name: Evaluator(model, self.observed, self.config, self.seed)
                 for name, model in {**self.models, **bounds}.items() if name != self.first}
        return {self.first: self.inputs.evaluator, **fresh}

    @cached_property
    def cases(self) -> dict[str, Case]:
        """Everybody's answer to the question, by name."""
        runs = {name: self.evaluators[name].case(self.question, self.dataset, self.questions.split)
                for name in self.models if name != self.first}
        images = {COPY: self.observed["image"], TRUE: self.truth["image"], BLUR: self._blurred(), NEAREST: self._nearest_others()}
        foils = {name: Case(self.question, {**self.truth, "image": x}, self.truth, x) for name, x in images.items()}
        return {COPY: foils[COPY], TRUE: foils[TRUE], self.first: self.inputs.cases[0], **runs, BLUR: foils[BLUR], NEAREST: foils[NEAREST]}

    def image(self, name: str) -> Tensor:
        """Answers ``(B, C, H, W)`` in [0, 1]."""
        return self.cases[name].answer["image"]

    def _blurred(self) -> Tensor:
        """The truth, blurred so far that its PSNR is the illustrated run's."""
        truth, side = self.truth["image"], min(self.truth["image"].shape[-2:])
        goal = psnr(inner(self.inputs.cases[0].answer["image"], self.border), inner(truth, self.border))
        sharp, wide = 0.1, side / 4
        for _ in range(20):
            sigma = (sharp + wide) / 2
            images = gaussian_blur(truth, [2 * min(int(3 * sigma) + 1, side - 1) + 1] * 2, [sigma, sigma])
            sharp, wide = (sigma, wide) if psnr(inner(images, self.border), inner(truth, self.border)) > goal else (sharp, sigma)
        return images

    def _nearest_others(self) -> Tensor:
        """Training images nearest in the continuous attributes that were asked for, of another class where there are classes."""
        training, variables = self.dataset.split("train"), self.dataset.graph.image_parents
        attributes, classes = training.attributes, [v for v in variables if v.discrete]
        nearest = []
        for rows in torch.arange(len(self.observed["image"])).split(64):
            distance = torch.zeros(len(rows), len(training))
            for variable in (v for v in variables if v.continuous):
                value = self.truth[variable.name][rows].unsqueeze(1)
                distance += ((value - attributes[variable.name]) / variable.statistics.std).square()
            if classes:
                same = [self.truth[v.name][rows].unsqueeze(1) == attributes[v.name] for v in classes]
                distance[torch.stack(same).all(0)] = torch.inf
            nearest.append(distance.argmin(1))
        return training.batch(torch.cat(nearest))["image"]

    # ------------------------------------------------------------------------------------------------ what they score
    def seen(self, name: str) -> CaseReadings:
        """What is read off the answers of one of them."""
        if name not in self._seen:
            first = self.inputs.readings[0]
            self._seen[name] = first if name == self.first else CaseReadings(self.cases[name], self.inputs.reader(self.image(name)),
                                                                             first.truth)
        return self._seen[name]

    def measured(self, name: str) -> Tensor:
        """An attribute measured on the true images, ``(B,)``.

        Raises:
            SchemaError: for one that the data set does not measure.
        """
        measured = self.seen(TRUE).truth.measured
        if name not in measured:
            raise SchemaError(f"{self.dataset.title} does not measure {name} on images; define measure(images)")
        return measured[name]

    @property
    def crowd(self) -> ReferenceSet:
        """Other real images, with features.

        Raises:
            SchemaError: without predictors.
        """
        if self.inputs.references is None:
            raise SchemaError(f"it needs the features of predictors; {self.inputs.how_to_train_predictors}")
        return self.inputs.references

    def truth_scores(self, name: str) -> dict[str, Score]:
        """Errors to the truth by metric, means over all images."""
        scores = truth_scores(self.cases[name], self.observed, self.border, self.dataset)
        return {score.metric: score for score in scores if not score.variable}

    def change_scores(self, name: str) -> dict[str, Score]:
        """Minimality by metric, means over all images."""
        variable, crowd = self.dataset.schema[self.question.variable], self.crowd
        scores = [*change_scores(self.cases[name], self.observed["image"], self.border),
                  divergence_score(self.seen(name), self.inputs.real, self.observed, crowd, variable)]
        return {score.metric: score for score in scores}

    def alike(self) -> tuple[Tensor, Tensor]:
        """Which of the crowd have the observed, which the asked value of each shown image, ``(shown, N)`` booleans."""
        variable, rest = self.dataset.schema[self.question.variable], self.crowd.attributes[self.question.variable]
        values = (self.observed[variable.name][self.shown], self.question.values[self.shown])
        return tuple(same_value(v, rest, variable.discrete) for v in values)

    def effectiveness(self, name: str) -> list[Score]:
        """Attributes read off the images against those that were meant, means over all images."""
        return list(effectiveness_scores(self.seen(name), self.inputs.real, self.observed, self.dataset))

"""Every metric of a model's counterfactuals under shared interventions, each beside its floors.

Published metrics of image counterfactuals judge a model by other models (predictors, features) or by itself
(composition, reversibility). Where a data set knows its own process, the error to the true counterfactual stands before
them all. What a model or a data set cannot give is named, with the reason and the remedy; the rest is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.base import CausalDataset
from dscm.capabilities import Model
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.inputs import MetricInputs
from dscm.evaluation.questions import Questions
from dscm.metrics.registry import families, metrics
from dscm.metrics.score import Score
from mechanisms.anticausal.model import Predictors
from mechanisms.runs.files import RunError, read_json, versions, write_json

FORMAT, KIND = 1, "evaluation"
_KEYS = ("run", "model", "dataset", "split", "count", "seed", "interventions", "settings", "versions", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """All scores of one model.

    Attributes:
        scores: in the order of the questions and, within each, of the metrics (:func:`dscm.metrics.registry.metrics`).
        missing: what could not be computed → why, and what would help. A key names a metric, or a metric and a question.
        about: plain values: ``run``, ``model``, ``dataset``, ``split``, ``count``, ``seed``, ``interventions`` (see
            :meth:`Questions.about`), ``settings`` (see :class:`EvaluationConfig`), ``versions``, ``seconds`` by part.
    """

    scores: tuple[Score, ...]
    missing: dict[str, str]
    about: dict[str, Any]

    def find(self, metric: str, intervention: str | None = None, variable: str | None = None, **settings: float | str) -> list[Score]:
        """Scores of this metric, and of this intervention, attribute and settings where these are given."""
        return [s for s in self.scores if s.metric == metric and intervention in (None, s.intervention) and variable in (None, s.variable)
                and all(s.settings.get(name) == value for name, value in settings.items())]

    def to_dict(self) -> dict[str, Any]:
        """What ``metrics.json`` holds: ``format, kind``, the keys of ``about``, ``scores`` (objects) and ``missing``."""
        return {"format": FORMAT, "kind": KIND, **self.about, "scores": [score.to_dict() for score in self.scores], "missing": self.missing}

    def save(self, path: Path) -> None:
        """Write ``metrics.json``, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """What :meth:`save` wrote.

        Raises:
            RunError: for a file that is missing, damaged or no evaluation.
        """
        again = "Make it again: python -m dscm.evaluate"
        state = read_json(path, {}, again)
        if state.get("kind") != KIND or state.get("format") != FORMAT:
            raise RunError(f"{path} is no evaluation of format {FORMAT}; make it again: python -m dscm.evaluate")
        read_json(path, {**dict.fromkeys(_KEYS, object), "scores": list, "missing": dict}, again)
        scores = tuple(Score.from_dict(score, f"{path}, score {k}") for k, score in enumerate(state["scores"]))
        return cls(scores, state["missing"], {key: state[key] for key in _KEYS})


def evaluate(model: Model, dataset: CausalDataset, questions: Questions, predictors: Predictors | None = None,
             config: EvaluationConfig | None = None, run: Path | None = None) -> Evaluation:
    """Ask ``model`` the questions and score its answers by every metric that can be computed.

    The observed images are encoded once, for all questions. Every figure is a function of its arguments (on a CPU bit for bit).

    Args:
        model: a :class:`dscm.DSCM`, or any :class:`dscm.capabilities.Model`.
        predictors: for predicted effectiveness, latent divergence and Fréchet distance; they are named as missing without.
        run: the model's folder, of which messages speak.

    Raises:
        RunError: for a model, questions or predictors of another data set; answers that are not finite.
        UserError: for a configuration that makes no sense.
    """
    config = config or EvaluationConfig()
    config.check()
    _same(model, dataset, questions, predictors)
    wanted, scores = families(config.parts), []
    inputs = MetricInputs(model, dataset, questions, predictors, config, run)
    with warnings.catch_warnings(), torch.no_grad(), tqdm(wanted, "evaluating", unit=" parts", delay=2, leave=False) as bar:
        warnings.simplefilter("ignore", UserWarning)  # values are drawn from training, and what follows from them is the truth's matter
        _ = inputs.cases  # whatever is wanted: a model that answers nothing is refused
        for family in bar:
            bar.set_postfix_str(family.part.replace("_", " "), refresh=False)
            with inputs.timed(family.part):
                scores += family.scores(inputs)
    about = {"run": "" if run is None else str(run), "model": _title(model), "dataset": dataset.title, "split": questions.split,
             "count": len(questions), "seed": questions.seed, "interventions": questions.about(),
             "settings": {**_plain(config), "calibrated": getattr(model, "calibration", None) is not None},
             "versions": versions(), "seconds": inputs.seconds}
    return Evaluation(tuple(_sorted(scores, [q.name for q in questions.questions])), inputs.missing, about)


def _same(model: Model, dataset: CausalDataset, questions: Questions, predictors: Predictors | None) -> None:
    for name, graph in (("model", model.graph), ("predictors", predictors and predictors.graph)):
        if graph is not None and (difference := graph.difference(dataset.graph)):
            raise RunError(f"the {name} and {dataset.title} do not belong together ({name} against data): {difference}. "
                           "Evaluate on the data that it was trained on")
    if questions.dataset != dataset.title:
        raise RunError(f"the questions are about {questions.dataset}, not about {dataset.title}; draw them from this data set")


def _title(model: Model) -> str:
    image = getattr(model, "image", None)
    return type(model).__name__ if image is None else f"{type(model).__name__} with {type(image).__name__}"


def _plain(config: EvaluationConfig) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def _sorted(scores: Iterable[Score], names: list[str]) -> list[Score]:
    """By question, those of none and of several last; then in the order of metrics."""
    order, places = list(metrics()), {name: k for k, name in enumerate(names)}
    return sorted(scores, key=lambda s: (places.get(s.intervention, len(places)), order.index(s.metric)))

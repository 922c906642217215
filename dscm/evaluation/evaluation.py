"""Every metric of a model's counterfactuals under shared interventions, each beside its floors.

Published metrics of image counterfactuals judge a model by other models (predictors, features) or by itself
(composition, reversibility). Where a data set knows its own process, the error to the true counterfactual stands before
them all. What a model or a data set cannot give is named, with the reason and the remedy; the rest is given.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.base import CausalDataset
from datasets.schema import SchemaError
from dscm.evaluation import scoring
from dscm.evaluation.answers import Case, Model, Respondent
from dscm.evaluation.config import PARTS, EvaluationConfig
from dscm.evaluation.questions import Questions
from dscm.evaluation.readings import Reader
from dscm.metrics.catalogue import METRICS
from dscm.metrics.score import Score
from mechanisms.anticausal.model import FOLDER as PREDICTORS
from mechanisms.anticausal.model import Predictors
from mechanisms.runs.files import RunError, read_json, versions, write_json
from mechanisms.training.noise import seeded

FORMAT, KIND = 1, "evaluation"
CALIBRATION, CLASSES = "coverage_*, width_*, crps_*", "effectiveness_accuracy, effectiveness_f1, effectiveness_auroc"
_KEYS = ("run", "model", "dataset", "split", "count", "seed", "interventions", "settings", "versions", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """All scores of one model.

    Attributes:
        scores: in the order of the questions and, within each, of the catalogue (:data:`dscm.metrics.METRICS`).
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
        model: a :class:`dscm.DSCM`, or anything with ``graph``, ``device`` and ``counterfactual``.
        predictors: for predicted effectiveness, latent divergence and Fréchet distance; they are named as missing without.
        run: the model's folder, of which messages speak.

    Raises:
        RunError: for a model, questions or predictors of another data set; answers that are not finite.
        UserError: for a configuration that makes no sense.
    """
    config = config or EvaluationConfig()
    config.check()
    _same(model, dataset, questions, predictors)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)  # values are drawn from training, and what follows from them is the truth's matter
        inquiry = Inquiry(model, dataset, questions, predictors, config, run)
        inquiry.conduct()
    about = {"run": "" if run is None else str(run), "model": _title(model), "dataset": dataset.title, "split": questions.split,
             "count": len(questions), "seed": questions.seed, "interventions": questions.about(),
             "settings": {**_plain(config), "calibrated": getattr(model, "calibration", None) is not None},
             "versions": versions(), "seconds": inquiry.seconds}
    return Evaluation(tuple(_sorted(inquiry.scores, [q.name for q in questions.questions])), inquiry.missing, about)


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
    """By question, those of none and of several last; then in the order of the catalogue."""
    order, places = list(METRICS), {name: k for k, name in enumerate(names)}
    return sorted(scores, key=lambda s: (places.get(s.intervention, len(places)), order.index(s.metric)))


class Inquiry:
    """One evaluation on its way: the answers, what is read off them, and what is scored or missing so far."""

    def __init__(self, model: Model, dataset: CausalDataset, questions: Questions, predictors: Predictors | None,
                 config: EvaluationConfig, run: Path | None) -> None:
        self.dataset, self.questions, self.predictors, self.config = dataset, questions, predictors, config
        self.observed = dataset.split(questions.split).batch(questions.index)
        self.respondent = Respondent(model, self.observed, config, questions.seed)
        self.reader = Reader(dataset, predictors, config.batch_size)
        self.border = dataset.border
        self.borders = (self.border, 0) if self.border else (0,)
        self.train_predictors = f"train them: python -m mechanisms.{PREDICTORS} --run {run or 'RUN'}"
        self.scores: list[Score] = []
        self.missing: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def conduct(self) -> None:
        """Ask and score everything, part by part."""
        wanted = self.config.parts or PARTS
        read = [self.readings] if set(wanted) & {"effectiveness", "minimality", "realism", "calibration"} else []
        parts = [self.answers, *read, *(getattr(self, part) for part in PARTS if part in wanted)]
        with tqdm(total=len(parts), desc="evaluating", unit=" parts", delay=2, leave=False) as bar:
            for part in parts:
                bar.set_postfix_str(part.__name__.replace("_", " "), refresh=False)
                began = time.perf_counter()
                part()
                self.seconds[part.__name__] = round(time.perf_counter() - began, 3)
                bar.update()

    @contextmanager
    def naming(self, what: str) -> Iterator[None]:
        """What the body cannot ask or compute is missing, with the reason that it gives."""
        try:
            yield
        except SchemaError as error:
            self.missing[what] = str(error)

    # ------------------------------------------------------------------------------------------------ answers
    def answers(self) -> None:
        self.cases: list[Case] = []
        for question in self.questions.questions:
            with self.naming(f"every metric under {question.name}"):
                self.cases.append(self.respondent.case(question, self.dataset, self.questions.split))
        if not self.cases:
            raise RunError(f"the model answers none of the questions: {'; '.join(self.missing.values())}")

    def readings(self) -> None:
        self.real = self.reader(self.observed["image"])
        self.seen = [scoring.Seen(case, self.reader(case.answer["image"]), self.reader(case.truth["image"]) if case.truth else None)
                     for case in self.cases]
        self.crowd = self._crowd() if self.predictors is not None else None

    def _crowd(self) -> scoring.Crowd:
        """Real images that are not asked about, or, in a small split, one half of it against the other."""
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
        return scoring.Crowd(chosen, torch.cat(features), {name: values[rows] for name, values in split.attributes.items()})

    # ------------------------------------------------------------------------------------------------ families
    def truth(self) -> None:
        for case in self.cases:
            if case.truth is None:
                self.missing[f"truth_*, minimality_excess, minimality_misplaced, coverage_*, width_*, crps_* under {case.name}"] = (
                    f"{self.dataset.title} knows no true image under {case.name}; a data set that does defines true_counterfactual and "
                    "names the variable in true_images_under")
                continue
            self.scores += list(scoring.truth_scores(case, self.observed, self.border, self.dataset))
        if min(self.observed["image"].shape[-2:]) - 2 * self.border < scoring.SMALLEST:
            self.missing["truth_ssim"] = f"its window takes images of at least {scoring.SMALLEST} pixels on a side"

    def effectiveness(self) -> None:
        if not self.real.measured:
            self.missing["effectiveness_measured"] = f"{self.dataset.title} measures nothing on images; define measure(images)"
        if self.predictors is None:
            self.missing[f"effectiveness_predicted, {CLASSES}"] = f"no predictors; {self.train_predictors}"
        elif not any(v.discrete for v in self.predictors.variables):
            self.missing[CLASSES] = "no cause of the image is discrete, so there is no class to tell"
        for seen in self.seen:
            self.scores += list(scoring.effectiveness_scores(seen, self.real, self.observed, self.dataset))

    def minimality(self) -> None:
        for case in self.cases:
            if case.truth is not None:
                self.scores += list(scoring.change_scores(case, self.observed["image"], self.border))
        if self.crowd is None:
            self.missing["minimality_cld"] = f"no predictors, whose features it compares; {self.train_predictors}"
            return
        for seen in self.seen:
            variable = self.dataset.schema[seen.case.question.variable]
            with self.naming(f"minimality_cld under {seen.case.name}"):
                self.scores.append(scoring.divergence_score(seen, self.real, self.observed, self.crowd, variable))

    def realism(self) -> None:
        if self.crowd is None:
            self.missing["realism_frechet"] = f"no predictors, whose features it compares; {self.train_predictors}"
            return
        with self.naming("realism_frechet"):
            floor = scoring.realism_floor(self.real, self.crowd, self.questions.seed)
            self.scores += [scoring.realism_score(seen, self.real, self.crowd, floor) for seen in self.seen]

    def composition(self) -> None:
        if not hasattr(self.respondent.model, "regenerate"):
            self.missing["composition_l1"] = "the model has no regenerate(observed), a null intervention without a short cut"
            return
        self.scores += list(scoring.composition_scores(self.respondent, self.borders))

    def reversibility(self) -> None:
        for case in self.cases:
            with self.naming(f"reversibility_l1 under {case.name}"):
                self.scores += list(scoring.reversibility_scores(self.respondent, case.question, self.borders))

    def commutativity(self) -> None:
        if len(self.cases) < 2:
            self.missing["commutativity_*"] = "it takes two interventions, and only one can be asked"
        for one, other in combinations(self.cases, 2):
            with self.naming(f"commutativity_* under do({one.question.variable}, {other.question.variable})"):
                self.scores += list(scoring.commutativity_scores(self.respondent, one.question, other.question, self.border))

    def free_energy(self) -> None:
        if not hasattr(self.respondent.model, "log_prob"):
            self.missing["free_energy"] = "the model has no log_prob(observed)"
            return
        self.scores += list(scoring.free_energy_scores(self.respondent.free_energy(), self.observed["image"][0].numel()))

    def calibration(self) -> None:
        known = {case.name: (case, truth) for seen in self.seen if (case := seen.case).truth and (truth := seen.truth)}
        if not self.config.draws:
            self.missing[CALIBRATION] = "no draws were asked for; give --draws 32"
        elif "draws" not in self.respondent.offers:
            self.missing[CALIBRATION] = "the model gives one answer only: its counterfactual takes no draws"
        elif known:
            for question, draws in self.respondent.drawn([case.question for case, _ in known.values()]):
                case, read = known[question.name]
                self.scores += scoring.calibration_scores(case, draws, self.observed["image"], read, self.real, self.border, self.reader,
                                                          self.dataset)

"""Deep feature reweighting: an ERM whose last layer is fitted anew on balanced groups."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.base import Split, with_columns
from datasets.ranges import AtLeastOne, NotNegative
from experiments.algorithms.base import Algorithm, Batch, Draw, TrainingContext, cross_entropy
from experiments.metrics.groups import part_weights, worst_group
from experiments.networks.features import FEATURES, extract
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # of the authors' code


@dataclass(frozen=True)
class DFRSettings:
    """Of DFR."""

    samplings: AtLeastOne[int] = 10
    """Balanced subsets, drawn anew for each, over whose heads the last layer is the mean."""
    strength: NotNegative[float] = 0.0
    """C in |w|₁ + C·Σ CE, the larger the weaker the penalty; 0 chooses it of 1, .7, .3, .1, .07, .03, .01."""


class DFR(Algorithm):
    """DFR (Kirichenko et al. 2023, *Last layer re-training is sufficient for robustness to spurious correlations*).

    The body is that of ERM and stays frozen, batch norm's statistics too. Of one random half of the validation rows, as many of
    each group that has any as the smallest of these has make a balanced subset; logistic regression with an ℓ1 penalty is fitted to its
    standardised features, and the head is the mean over several such subsets. Its strength is that by which the worst group of the
    other half does best, and so does selection look at the other half. It sees labels *and groups of validation rows*, which other
    algorithms do not: tables should say so.

    The published last fit takes both halves, after which no validation row would be left to judge it by. The penalised fit is
    scikit-learn's: by liblinear, as there, for two classes, which penalises the intercept too; by SAGA for more.

    Attributes:
        strength: C of the fit, a buffer; 0 before it.
    """

    name = "dfr"
    title = "DFR (sees validation groups)"
    assumes = "ERM's features tell the label already, and a small set with known spurious attributes is at hand"
    needs = frozenset({"groups"})
    settings = DFRSettings
    grouped = "valid"
    reads_features = True

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.network.requires_grad_(False)
        self.network.head.requires_grad_(True)
        self.register_buffer("strength", torch.zeros(()))

    def train(self, mode: bool = True) -> DFR:
        """Only the head is ever in training mode."""
        super().train(mode)
        self.network.eval()
        return self

    @classmethod
    def check_rows(cls, trainer: TrainingContext) -> None:
        cls._halves(trainer, trainer.selection)

    @classmethod
    def _halves(cls, trainer: TrainingContext, valid: Split) -> tuple[Split, Split]:
        """What the head is fitted to, and what it is judged by.

        Raises:
            RunError: where the former lacks a class.
        """
        fitted, judged = halved(valid, seeded(trainer.seed, 11, 0))
        counts = torch.bincount(fitted.attributes["label"], minlength=trainer.task.classes)
        if lacking := [trainer.task.label.classes[k] for k in (counts == 0).nonzero().flatten().tolist()]:
            rows = int((valid.attributes["shift"] == 0).sum())
            raise RunError(f"--algorithm {cls.name} fits the last layer to half of the validation rows, {len(fitted)} of {rows} (seed "
                           f"{trainer.seed}), but these show none of the class {', '.join(lacking)}: validation needs more rows, or take "
                           "another --algorithm")
        return fitted, judged

    @classmethod
    def learn(cls, trainer: TrainingContext) -> Algorithm:
        model = trainer.build(trainer.base().network)
        fitted, judged = (with_features(model, split) for split in cls._halves(trainer, trainer.valid))
        if not trainer.is_finished():
            model.refit(fitted, judged, trainer.seed)
        # nothing is left to be minimised: the one update judges and writes what was fitted, as all that is trained is
        return trainer.fit(model, train=fitted, valid=judged, steps=1, batch_size=len(fitted), weight_decay=0.0)

    def refit(self, fitted: Split, judged: Split, seed: int) -> DFR:
        """Take the head from the rows of ``fitted``, the strength by those of ``judged`` that are as observed."""
        x, y, groups = (fitted.attributes[name].numpy() for name in (FEATURES, "label", "group"))
        mean, scale = x.mean(0), x.std(0)
        scale[scale == 0] = 1.0
        generator = np.random.default_rng([seed, 11])
        subsets = [balanced_rows(groups, generator) for _ in range(self.options.samplings)]

        def take(strength: float, of: list[np.ndarray]) -> None:
            heads = [fit_head((x[rows] - mean) / scale, y[rows], strength, seed) for rows in of]
            weight, bias = (np.mean([head[k] for head in heads], 0) for k in (0, 1))
            with torch.no_grad():
                self.network.head.weight.copy_(torch.from_numpy(weight / scale))
                self.network.head.bias.copy_(torch.from_numpy(bias - weight / scale @ mean))
            self.strength.fill_(strength)

        def worst(strength: float) -> float:
            take(strength, subsets[:1])
            observed = judged.attributes["shift"] == 0
            right = (self.network.logits(judged.attributes[FEATURES][observed]).argmax(-1) == judged.attributes["label"][observed]).float()
            group = judged.attributes["group"][observed]
            return worst_group({f"group_{g}": float(right[group == g].mean()) for g in group.unique().tolist()}, judged)

        take(self.options.strength or max(STRENGTHS, key=worst), subsets)
        return self

    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        losses = cross_entropy(self.read(batch), batch["label"])
        return {"loss": losses * (self.strength == 0), "risk": losses, "strength": self.strength.clone()}


def halved(split: Split, generator: torch.Generator) -> tuple[Split, Split]:
    """A random half of the observed rows of a selection split, and the other half with all that are under a shift.

    A row that is in the first half is so under no shift in the second. Weights are made anew.
    """
    observed = int((split.attributes["shift"] == 0).sum())
    first = torch.zeros(observed, dtype=torch.bool)
    first[torch.randperm(observed, generator=generator)[: observed // 2]] = True
    everywhere = first.repeat(len(split) // observed)
    halves = []
    for keep in (everywhere & (split.attributes["shift"] == 0), ~everywhere):
        columns = {name: values[keep] for name, values in split.attributes.items()}
        halves.append(Split(split.name, split.images[keep], {**columns, **part_weights(columns["group"], columns["shift"])}))
    return halves[0], halves[1]


def balanced_rows(groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rows of a random subset in which each group ``(N,)`` that there is has as many as the smallest has; ascending."""
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    fewest = min(map(len, rows))
    return np.sort(np.concatenate([generator.choice(group, fewest, replace=False) for group in rows]))


def fit_head(x: np.ndarray, y: np.ndarray, strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """argmin of |w|₁ + C·Σ_i CE_i on features ``(N, F)`` and labels ``(N,)``: weights ``(1 | K, F)``, biases; 1 output for two classes."""
    from sklearn.linear_model import LogisticRegression

    older = inspect.signature(LogisticRegression).parameters["penalty"].default == "l2"  # before scikit-learn 1.8
    settings = {"penalty": "l1"} if older else {"l1_ratio": 1.0}
    settings |= {"solver": "liblinear"} if len(np.unique(y)) == 2 else {"solver": "saga", "tol": 1e-2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that stops early: it is averaged with others
        fitted = LogisticRegression(C=strength, random_state=seed, **settings).fit(x.astype(np.float64), y)
    return fitted.coef_, fitted.intercept_


def with_features(model: Algorithm, split: Split) -> Split:
    """The same rows with the network's features ``(N, F)`` as a column, and images of no pixels; itself, if that is so already."""
    return split if FEATURES in split.attributes else with_columns(split.without_images(), features=extract(model.network, split))

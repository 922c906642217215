"""What every algorithm that trains a classifier provides: an objective, one update, a prediction.

An algorithm owns a network. :func:`mechanisms.training.loop.fit` trains it like any mechanism; :meth:`Algorithm.update` is one
step on its own. A new algorithm is one new file in this folder with one subclass that has a ``name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.base import LazyImages, Split
from datasets.errors import UserError
from datasets.ranges import as_setting, check_ranges
from datasets.task import Sizes, Task
from experiments.networks.base import Network
from mechanisms.training.config import TrainingConfig
from mechanisms.training.noise import drawing

Batch = Mapping[str, Tensor]
Draw = Callable[..., Tensor]  # draw(rows, *shape): standard normals


@dataclass(frozen=True)
class NoSettings:
    """For algorithms without hyper-parameters of their own."""


class Planned(Protocol):
    """What some algorithm is trained with."""

    training: TrainingConfig


class TrainingContext(Protocol):
    """One training of one algorithm, as :meth:`Algorithm.learn` sees it; :class:`experiments.training.trainer.Trainer` is one.

    Attributes:
        task: what is to be predicted.
        settings: of the algorithm's own dataclass.
        config: budget, optimiser and so on.
        seed: of all that is random.
        folder: of this training; a stage has a folder of its own in it.
        base_folder: of the training of :meth:`base`.
        train: the training split, with the columns that the algorithm needs; with features in place of images where it reads these.
        valid: the rows that weights are selected by, seen in the same way.
        selection: the same rows with their images.
    """

    task: Task
    settings: Any
    config: TrainingConfig
    seed: int
    folder: Path
    base_folder: Path
    train: Split
    valid: Split
    selection: Split

    def build(self, network: Network | None = None) -> Algorithm:
        """The algorithm around a network, or around a freshly initialised one."""

    def fit(self, model: Algorithm, stage: str = "", train: Split | None = None, valid: Split | None = None, **changes: Any) -> Algorithm:
        """Train ``model`` in place and return it, in eval mode; a stage that is finished is only read.

        Args:
            stage: name of one of several; empty for the last one.
            train, valid: instead of the splits.
            changes: to ``config``; a budget replaces the one there is.
        """

    def base(self) -> Algorithm:
        """ERM of the same seed, trained once for all algorithms of a run that begin with it."""

    def resolve(self, name: str) -> Planned:
        """What another algorithm is trained with here."""

    def is_finished(self) -> bool:
        """Whether this training was finished before, and is only to be read."""


class Algorithm(nn.Module):
    """A network and the objective that it is trained for.

    A batch holds ``image`` (float in [0, 1], ``(B, C, H, W)``), ``label``, ``environment``, ``group``, ``row`` (int64,
    ``(B,)``) and, for those that need them, ``counterfactual`` and ``relabelled`` (uint8, ``(B, M, C, H, W)``), ``mask`` (bool,
    ``(B, H, W)``, true in the foreground) and ``weight`` (float, ``(B,)``). Where the body is frozen and the algorithm
    ``reads_features``, it holds ``features`` (float, ``(B, F)``) instead of images.

    Attributes:
        name: as on the command line.
        title: as in tables.
        assumes: in a sentence, what makes it work, for people.
        needs: of ``environments``, ``groups``, ``counterfactuals`` (which keep the label), ``relabelled`` (which show another class),
            ``masks``, ``camera`` (a network with a ``cam_layer``).
        settings: dataclass of its own hyper-parameters.
        defaults: fields of the training or of the network that it is best trained with, where no recipe says otherwise.
        reads_features: whether it can do with the features of a frozen body, in place of images; see :mod:`experiments.networks.features`.
            One that cannot is trained on images, of which the body then makes features anew in each update.
        stackable: whether several seeds may be trained at once, because its objective draws no noise, keeps no state
            and trains in one stage; see :mod:`experiments.training.stacked`.
        grouped: the split whose groups it uses, if it needs any.
        begun_from: fingerprint of the weights that it began with, if these were trained; stored with those that it ends with.

    Args:
        l2: weight of Σ‖w‖² over all parameters in the loss.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    assumes: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[type] = NoSettings
    defaults: ClassVar[Mapping[str, Any]] = {}
    reads_features: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    grouped: ClassVar[str] = "train"
    begun_from: str = ""

    def __init__(self, network: Network, sizes: Sizes, settings: Any = None, l2: float = 0.0) -> None:
        super().__init__()
        self.network, self.sizes, self.l2 = network, sizes, l2
        self.options = self.settings() if settings is None else settings
        self.check(self.options)

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises UserError for settings out of their range; a subclass adds what else its own must fulfil."""
        check_ranges(settings, as_setting)

    @classmethod
    def needs_of(cls, settings: Any) -> frozenset[str]:
        """What it needs with these settings; ``needs`` is what it needs without any."""
        return cls.needs

    @classmethod
    def stackable_with(cls, settings: Any) -> bool:
        """Whether several seeds may be trained at once with these settings; see ``stackable``."""
        return cls.stackable

    @classmethod
    def columns(cls, settings: Any, task: Task) -> Mapping[str, Tensor | LazyImages]:
        """Further columns of the training split, ``(N, …)`` each, which these settings name the source of.

        Raises:
            UserError: for a source that is not there or does not fit.
        """
        return {}

    @classmethod
    def check_rows(cls, trainer: TrainingContext) -> None:
        """Raises UserError for rows that cannot be trained on or selected by, before anything is trained."""

    # ------------------------------------------------------------------------------------------------ to provide
    def objective(self, batch: Batch, progress: float, noise: Draw) -> dict[str, Tensor]:
        """Terms to log, ``(B,)`` or scalar each; the mean of ``loss`` is minimised.

        Means over environments, groups and the like are over the batch of *all* processes (:mod:`.groups`).

        Args:
            progress: share of the training that is done, in [0, 1].
            noise: ``noise(rows, *shape)`` draws standard normals.
        """
        raise NotImplementedError(f"{type(self).__name__} must define objective(batch, progress, noise)")

    @classmethod
    def learn(cls, trainer: TrainingContext) -> Algorithm:
        """The trained algorithm; one stage, unless a subclass has several."""
        return trainer.fit(trainer.build())

    def restarts(self) -> tuple[float, ...]:
        """Shares of the training, in [0, 1], at which the optimiser begins anew."""
        return ()

    # ------------------------------------------------------------------------------------------------ derived
    def read(self, batch: Batch) -> Tensor:
        """Logits of a batch, ``(B, K)``; from its features, if it has them."""
        return self.network.logits(batch["features"]) if "features" in batch else self.network(batch["image"])

    def penalty_of_weights(self) -> Tensor | float:
        """l2·Σ‖w‖² over all parameters that are trained, biases included, as in the published recipe of Colored MNIST."""
        return self.l2 * sum(p.square().sum() for p in self.network.trained_parameters()) if self.l2 else 0.0

    def forward(self, batch: Batch, noise: Draw | None = None, progress: float = 1.0) -> dict[str, Tensor]:
        """In training the objective's terms, else :meth:`scores`; ``(B,)`` each, as :func:`mechanisms.training.loop.fit` wants them."""
        if not self.training:
            return self.scores(batch)
        terms = self.objective(batch, progress, noise or drawing(None, batch["image"].device))
        return {name: term.expand(len(batch["label"])) if term.ndim == 0 else term for name, term in terms.items()}

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` (cross-entropy) and ``accuracy``; for rows with the weights of
        :func:`experiments.metrics.groups.part_weights`, by group and shift too.

        With these the mean of a term over *all* rows is the mean over those rows that it is about.
        """
        logits = self.read(batch)
        loss, correct = cross_entropy(logits, batch["label"]), (logits.argmax(-1) == batch["label"]).float()
        if "observed" not in batch:
            return {"loss": loss, "accuracy": correct}
        terms = {"loss": loss * batch["observed"], "accuracy": correct * batch["observed"]}
        for g in range(self.sizes.groups):
            terms[f"group_{g}"] = correct * batch["in_group"] * (batch["group"] == g)
        for k in range(self.sizes.shifts):
            terms[f"shift_{k}"] = correct * batch["in_shift"] * (batch["shift"] == k + 1)
        return terms

    def update(self, batch: Batch, optimizer: torch.optim.Optimizer, progress: float = 1.0, noise: Draw | None = None) -> dict[str, float]:
        """One step of ``optimizer`` in training mode; the means of the objective's terms before it."""
        self.train()
        terms = self(batch, noise, progress)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].mean().backward()
        optimizer.step()
        return {name: float(term.detach().mean()) for name, term in terms.items()}

    def predict(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` in evaluation mode, which is left as it was found; gradients flow."""
        training = self.network.training
        try:
            return self.network.eval()(images)
        finally:
            self.network.train(training)

    def describe(self) -> dict[str, Any]:
        """Plain values that tell this algorithm and its network from any other; stored with the weights."""
        begun = {"begun_from": self.begun_from} if self.begun_from else {}
        return {"kind": "classifier", "algorithm": self.name, "settings": asdict(self.options), "l2": self.l2,
                "sizes": asdict(self.sizes), **self.network.describe(), **begun}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(l)_y in nats, ``(B,)``."""
    return F.cross_entropy(logits, labels, reduction="none")


def require(holds: bool, name: str, value: Any, what: str) -> None:
    """Raises UserError unless ``holds``: setting ``name`` is ``value`` but must be ``what``."""
    if not holds:
        raise UserError(f"{name}={value} must {what}")

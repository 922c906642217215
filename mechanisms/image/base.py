"""p(image | parents): the face that every image mechanism shows, whatever family it is of.

    x = f(u; pa),  u ~ p(u)

A mechanism is a function f of exogenous noise u, which no parent can see, and of the image's parents. Abduction draws from
p(u | x, pa), prediction applies f, sampling composes a draw of u with f (Pearl 2009, *Causality*, §7.1; Pawlowski, Castro & Glocker
2020, *Deep structural causal models*, §3). :class:`dscm.DSCM`, metrics, calibration, counterfactual training, comparison and export
know a mechanism by this face only. A new family is one new file in this folder with one subclass that has a ``name``, or a file of
your own, ``--mechanism FILE.py:build`` (``docs/my_mechanism.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from datasets.errors import UserError
from datasets.schema import Graph, encode_parents

if TYPE_CHECKING:
    from mechanisms.image.own import Origin

Draw = Callable[..., Tensor]  # draw(rows, *shape) → standard normals, for instance a mechanisms.training.noise.Noise
Effect = Literal["total", "direct", "indirect"]


class ImageNoise(ABC):
    """The exogenous noise u of B images, as one family of mechanisms keeps it. Rows are images, or K·B of them: draw k of image b is
    row k·B + b."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def rows(self, index: Tensor | slice) -> Self:
        """The noise of the rows that ``index`` selects."""

    @classmethod
    @abstractmethod
    def cat(cls, noises: Iterable[Self]) -> Self:
        """One after the other, along rows."""


@dataclass(frozen=True)
class NoConfig:
    """For mechanisms without settings of their own."""


class ImageMechanism(nn.Module, ABC):
    """x = f(u; pa), trained by :func:`mechanisms.training.loop.fit`.

    Images are float in [0, 1], ``(B, C, H, W)``; parents are attributes in physical units by name, ``(B,)`` each, and may hold more than
    the image's own. Nothing in :meth:`abduct` and :meth:`predict` stops gradients where ``differentiable``.

    Args:
        graph: with statistics of the training split; the image's parents are taken from it by name.
        config: of the class's ``settings``; its defaults if None.

    Attributes:
        name: as on the command line; empty for classes that are none by themselves.
        settings: dataclass of the mechanism's own settings, of plain values only; a ``check()`` of it is called.
        effects: of those of :data:`Effect`, what :meth:`predict` can tell apart.
        tempered: whether there is a pixel residual, which ``temperature`` scales.
        bounded: whether :meth:`free_energy` is defined.
        differentiable: whether gradients reach weights, images and continuous parents through abduction and prediction.
        origin: of a mechanism from a user's file: that file and how it was called; set by :func:`mechanisms.image.own.build_own`.
    """

    name: ClassVar[str] = ""
    settings: ClassVar[type] = NoConfig
    effects: ClassVar[tuple[Effect, ...]] = ("total",)
    tempered: ClassVar[bool] = True
    bounded: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    origin: Origin | None = None

    def __init__(self, graph: Graph, config: Any = None) -> None:
        super().__init__()
        self.graph, self.config = graph, self.settings() if config is None else config
        self.parents = graph.image_parents
        if (check := getattr(self.config, "check", None)) is not None:
            check()

    # ------------------------------------------------------------------------------------------------ to provide
    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor], noise: Draw, progress: float = 1.0) -> dict[str, Tensor]:
        """Terms to log, ``(B,)`` each; the mean of ``loss`` is minimised. Where ``bounded``, ``free_energy`` is among them.

        Args:
            batch: attributes in physical units and ``image``.
            noise: draws standard normals.
            progress: share of the training that is done, in [0, 1].
        """

    @abstractmethod
    def abduct(self, images: Tensor, parents: Mapping[str, Tensor], draw: Draw | None = None, draws: int = 1) -> ImageNoise:
        """u ~ p(u | x, pa), of K·B rows.

        Args:
            draw: draws standard normals; without it the noise is the one most to be expected, and the same at every call.
            draws: K, how many of each image.

        Raises:
            UserError: for fewer than one draw.
        """

    @abstractmethod
    def predict(self, noise: ImageNoise, parents: Mapping[str, Tensor], temperature: float = 1.0, effect: Effect = "total") -> Tensor:
        """x* = f(u; pa*).

        Law: ``predict(abduct(x, pa), pa) == x`` at temperature 1, for every effect.

        Args:
            temperature: of the pixel residual: 1 keeps every detail of the image, 0 shows what the model explains.
            effect: of the change of parents, one of ``effects``; see :meth:`check_effect`.
        """

    @abstractmethod
    def draw_noise(self, rows: int, draw: Draw) -> ImageNoise:
        """u ~ p(u), which never sees a parent."""

    # ------------------------------------------------------------------------------------------------ derived
    def free_energy(self, images: Tensor, parents: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """An upper bound of −log p(x | pa), nats per image, ``(B,)``.

        Raises:
            UserError: for a mechanism that has none.
        """
        self.check_bounded("a free energy")
        return self({**parents, "image": images}, draw)["free_energy"]

    def bound_and_noise(self, batch: Mapping[str, Tensor], draw: Draw) -> tuple[Tensor, ImageNoise]:
        """:meth:`free_energy` and :meth:`abduct`; of one and the same draw where a family can do both in one pass.

        Raises:
            UserError: for a mechanism without a free energy.
        """
        return self.free_energy(batch["image"], batch, draw), self.abduct(batch["image"], batch, draw)

    def check_bounded(self, what: str) -> None:
        """Raises UserError where ``what`` needs a bound of the likelihood that this mechanism has not."""
        if not self.bounded:
            raise UserError(f"{what} needs a bound of log p(image | parents), which the image mechanism {self.title} has not; "
                            "train another with --mechanism")

    def check_effect(self, effect: str) -> None:
        """Raises UserError for an unknown effect, or one that this mechanism cannot tell apart."""
        if effect not in self.effects:
            raise UserError(f"effect={effect!r} cannot be had from the image mechanism {self.title}; valid are {', '.join(self.effects)}")

    def encode(self, parents: Mapping[str, Tensor], rows: int) -> Tensor:
        """The image's parents in the order of the graph, each as its variable encodes it, ``(B, D)``."""
        return encode_parents(self.parents, parents, rows, self.device)

    @property
    def title(self) -> str:
        """Its registered name, or that of its class, for messages."""
        return repr(self.name or type(self).__name__)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

"""Networks that classify images: a body that makes features, and one linear head. All that an algorithm needs to know of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mechanisms.runs.files import weights_fingerprint

Shape = tuple[int, int, int]
_VALUES = 2**24  # of images that are shown at a time: what comes of them in a deep network is some ten times as much


class Network(nn.Module):
    """logits = head(features(images)), ``(B, K)``; images are float in [0, 1], ``(B, C, H, W)``.

    A subclass builds its body in ``__init__`` and defines :meth:`features`. A head of a single output l stands for the
    logits (−l/2, +l/2) of two classes, whose cross-entropy is the logistic loss of l.

    Attributes:
        cam_layer: dotted name of the layer whose activations a class-activation map is drawn from; empty if there is none.
        default_hidden: units of the last hidden layer, if not told otherwise.
        head: linear, from F features.
        frozen: whether the head alone is trained, see :meth:`freeze`.
        pretrained: fingerprint of the body's weights, if it began with some that were trained elsewhere.
    """

    name: ClassVar[str] = ""
    cam_layer: ClassVar[str] = ""
    default_hidden: ClassVar[int] = 256
    head: nn.Linear
    frozen: bool = False
    pretrained: str = ""

    def __init__(self, shape: Shape, classes: int, hidden: int | None = None) -> None:
        super().__init__()
        self.shape, self.classes, self.hidden = tuple(shape), classes, hidden or self.default_hidden

    def features(self, images: Tensor) -> Tensor:
        """What the head reads, ``(B, F)``."""
        raise NotImplementedError(f"{type(self).__name__} must define features(images)")

    def logits(self, features: Tensor) -> Tensor:
        """The head alone, ``(B, F)`` → ``(B, K)``; in single precision whatever the body computes in."""
        with torch.autocast(features.device.type, enabled=False):
            output = self.head(features.float())
            return torch.cat([-output / 2, output / 2], -1) if output.shape[-1] == 1 else output

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))

    def freeze(self) -> Network:
        """From now on only the head is trained: the body's parameters get no gradient, and it stays in eval mode.

        So batch norm uses, and keeps, the statistics that it has, and the features of an image are always the same.
        """
        self.frozen = True
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if self.frozen:
            for name, child in self.named_children():
                child.train(mode and name == "head")
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        """All, or the head's if the body is frozen."""
        return list((self.head if self.frozen else self).parameters())

    def body_fingerprint(self) -> str:
        """A hash of all weights but the head's: with the same one, and the same :meth:`describe`, features are the same."""
        if self.frozen and self.pretrained:
            return self.pretrained
        return weights_fingerprint(*(child for name, child in self.named_children() if name != "head"))

    def describe(self) -> dict[str, Any]:
        """Plain values from which :func:`rebuild` makes a network of the same shape; what is not so by default is left out."""
        began = {"frozen": True} if self.frozen else {}
        began |= {"pretrained": self.pretrained} if self.pretrained else {}
        return {"network": self.name, "shape": list(self.shape), "classes": self.classes, "hidden": self.hidden, **began}


def at_once(shape: Shape) -> int:
    """How many images of a shape are shown to a network at a time outside of training: 1000, or fewer large ones."""
    return max(1, min(1000, _VALUES // math.prod(shape)))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module has the mode that it had, also after an error."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

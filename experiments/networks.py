"""Networks that classify images: a body that makes features, and one linear head. All that an algorithm needs to know of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mechanisms.checkpoint import RunError, weights_fingerprint
from mechanisms.fitting import fitting

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


class MLP(Network):
    """Two hidden layers of ReLUs on the pixels; Xavier-uniform weights, zero biases; one output for two classes.

    The network of Colored MNIST (Arjovsky et al. 2019, *Invariant Risk Minimization*, §5.1).
    """

    name = "mlp"
    default_hidden = 390

    def __init__(self, shape: Shape, classes: int, hidden: int | None = None) -> None:
        super().__init__(shape, classes, hidden)
        channels, height, width = self.shape
        self.first = nn.Linear(channels * height * width, self.hidden)
        self.second = nn.Linear(self.hidden, self.hidden)
        self.head = nn.Linear(self.hidden, 1 if classes == 2 else classes)
        for layer in (self.first, self.second, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def features(self, images: Tensor) -> Tensor:
        return self.second(self.first(images.flatten(1)).relu()).relu()


class SmallCNN(Network):
    """Two blocks of two unpadded 3×3 convolutions (16, then 32 channels) with batch norm, ReLU and pooling; 256 units; the head.

    The network of Spurious MNIST (Asgari et al. 2022, *MaskTune*, appendix).

    Raises:
        RunError: for images below 16×16, of which nothing is left after two blocks.
    """

    name = "smallcnn"
    cam_layer = "blocks.1.5"

    def __init__(self, shape: Shape, classes: int, hidden: int | None = None) -> None:
        super().__init__(shape, classes, hidden)
        channels, *sides = self.shape
        sides = [((side - 4) // 2 - 4) // 2 for side in sides]
        if min(sides) < 1:
            raise RunError("--network smallcnn needs images of at least 16×16 pixels, not "
                           f"{self.shape[1]}×{self.shape[2]}; take --network mlp")
        self.blocks = nn.ModuleList(_block(a, b) for a, b in ((channels, 16), (16, 32)))
        self.dense = nn.Sequential(nn.Linear(32 * sides[0] * sides[1], self.hidden), nn.BatchNorm1d(self.hidden), nn.ReLU())
        self.head = nn.Linear(self.hidden, classes)
        self.to(memory_format=torch.channels_last)  # an update takes a third less time so, in single and in half precision

    def features(self, images: Tensor) -> Tensor:
        for block in self.blocks:
            images = block(images)
        return self.dense(images.flatten(1))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(),
                         nn.Conv2d(outputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


NETWORKS: dict[str, type[Network]] = {kind.name: kind for kind in (MLP, SmallCNN)}
ALIASES = {"small": SmallCNN.name}


def network_kind(name: str) -> type[Network]:
    """The class of that name: one of ours, or torchvision's network as a :class:`experiments.backbones.Backbone`.

    Raises:
        RunError: for an unknown name; the message lists ours, torchvision's families, and those of the family that is meant.
    """
    from experiments.backbones import backbone, known  # builds on this module; torchvision takes a second to import

    name = ALIASES.get(name, name)
    if name in NETWORKS:
        return NETWORKS[name]
    if (found := backbone(name)) is None:
        ours = ", ".join([*NETWORKS, *ALIASES])
        raise RunError(f"unknown network {name!r}; valid are {ours}, and torchvision's {known(name)}")
    return found


def build_network(name: str, shape: Shape, classes: int, hidden: int | None = None) -> Network:
    """A freshly initialised network.

    Args:
        name: see :func:`network_kind`.
        shape: of one image, ``(C, H, W)``.
        hidden: units of the last hidden layer; the network's own default if None.

    Raises:
        RunError: for an unknown name, fewer than two classes, or a size that makes no sense.
    """
    kind = network_kind(name)
    if classes < 2:
        raise RunError(f"a classifier needs at least two classes, not {classes}")
    if hidden is not None and hidden < 1:
        raise RunError(f"--hidden {hidden} must be at least 1")
    with fitting(f"--network {name}" + (f" --hidden {hidden}" if hidden else ""), 1):
        return kind(shape, classes, hidden)


def rebuild(description: Mapping[str, Any]) -> Network:
    """The network that :meth:`Network.describe` described, freshly initialised; no file of pretrained weights is read."""
    network = build_network(description["network"], tuple(description["shape"]), description["classes"], description["hidden"])
    network.pretrained = description.get("pretrained", "")
    return network.freeze() if description.get("frozen") else network


def at_once(shape: Shape) -> int:
    """How many images of a shape are shown to a network at a time outside of training: 1000, or fewer large ones."""
    return max(1, min(1000, _VALUES // math.prod(shape)))

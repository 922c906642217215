"""TODO."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mechanisms.runs.files import RunError


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

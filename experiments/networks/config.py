"""Which network a classifier is. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.ranges import NotNegative, Width, check_ranges, within

Border = within(0, 1024)  # pixels


@dataclass(frozen=True)
class ClassifierConfig:
    """The network and what all algorithms share."""

    network: str = "smallcnn"
    """Which network: mlp, smallcnn or small, or a classifier of torchvision, as resnet18 or resnet50."""
    hidden: Width[int | None] = None
    """Units of its last hidden layer; the network's own default without it."""
    l2: NotNegative[float] = 0.0
    """Weight of the sum of squares of all parameters that are trained in the loss."""
    weights: str = "none"
    """What a network of torchvision begins with: none (random), default (torchvision's pretrained weights, which are downloaded), or
    the path of its state dict, .pt or .safetensors."""
    frozen: bool = False
    """Train the head alone; the body's features of the images are computed once and kept."""
    crop: Border[int] = 0
    """Train on windows, at random, of each image with a border of so many zeros around it; masks and counterfactuals follow."""
    flip: bool = False
    """Mirror half of the training images, at random; masks and counterfactuals follow. Only where a mirrored image has the same label."""

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        check_ranges(self)

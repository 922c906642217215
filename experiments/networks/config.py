"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.errors import UserError


@dataclass(frozen=True)
class ClassifierConfig:
    """The network and what all algorithms share."""

    network: str = "smallcnn"
    """Which network; see experiments/networks/base.py."""
    hidden: int | None = None
    """Units of its last hidden layer; the network's own default without it."""
    l2: float = 0.0
    """Weight of the sum of squares of all parameters that are trained in the loss."""
    weights: str = "none"
    """What a network of torchvision begins with: none (random), default (torchvision's), or the path of a state dict."""
    frozen: bool = False
    """Whether only the head is trained."""
    crop: int = 0
    """Training images are windows, at random, of the image with a border of so many zeros around it."""
    flip: bool = False
    """Whether half of the training images, at random, are mirrored."""

    def check(self) -> None:
        """Raises UserError for a number that makes no sense."""
        if self.crop < 0:
            raise UserError(f"--crop {self.crop} must not be negative")
        if not 0 <= self.l2 < float("inf"):
            raise UserError(f"--l2 {self.l2} must not be negative")

"""Experts and the discriminator that judges them: what is kept of a training, and how images are inverted with it."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from datasets.errors import UserError
from mechanisms.experts.networks import EXPERTS, Discriminator, Shape, check_shape
from mechanisms.experts.options import ExpertsConfig
from mechanisms.runs.files import RunError, check_finite, load, rebuilt
from mechanisms.training.state import WEIGHTS

FOLDER = "experts"
_AT_ONCE = 256  # images


class Inverted(NamedTuple):
    """What :meth:`Experts.invert` tells of ``B`` images."""

    image: Tensor
    """The winner's output, ``(B, C, H, W)`` in [0, 1]."""
    winner: Tensor
    """Index of the expert whose output scores highest, int64 ``(B,)``."""
    scores: Tensor
    """D of every expert's output, a logit of being canonical, ``(B, E)``."""


class Experts(nn.Module):
    """E_1, …, E_E and D: x̂ = E_w(x), w = argmax_j D(E_j(x)) (Parascandolo et al. 2018, *Learning independent causal mechanisms*).

    An expert is an image mechanism run backwards: what it has learned is the inverse of one M_k, x ↦ M_k⁻¹(x). The
    forward direction is not learned. Where M_k loses something (what a translation moves out of the frame, detail under
    noise or blur), no expert can bring it back: then x̂ is a plausible canonical image, not the one that was.

    Args:
        shape: ``(channels, height, width)`` of images, see :func:`mechanisms.experts.networks.check_shape`.
        config: how many experts of which kind.
        margin: pixels on each side of the images that are padding, see :class:`datasets.unpaired.UnpairedDataset`.
    """

    def __init__(self, shape: Shape, config: ExpertsConfig, margin: int = 0) -> None:
        super().__init__()
        check_shape(shape)
        self.shape, self.config, self.margin = tuple(shape), config, margin
        self.experts = nn.ModuleList(EXPERTS[config.expert](self.shape, config) for _ in range(config.experts))
        self.discriminator = Discriminator(self.shape, config)

    def outputs(self, x: Tensor) -> Tensor:
        """Every expert's output of every image, ``(E, B, C, H, W)``; without gradient all experts run as one."""
        if torch.is_grad_enabled() or self.experts.training:
            return torch.stack([expert(x) for expert in self.experts])
        stacked = stack_module_state(self.experts)
        return torch.vmap(lambda *state: functional_call(self.experts[0], state, (x,)))(*stacked)

    def scores(self, outputs: Tensor) -> Tensor:
        """D of outputs ``(E, B, C, H, W)``: ``(E, B)``."""
        return self.discriminator(outputs.flatten(0, 1)).view(outputs.shape[:2])

    def check(self, x: Tensor) -> Tensor:
        """``x`` on this model's device, of its type; raises UserError for another shape, or values that are not in [0, 1]."""
        if not isinstance(x, Tensor):
            raise UserError(f"images must be a tensor, not {type(x).__name__}; torch.as_tensor makes one")
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            bare = x.ndim == 4 and self.margin and tuple(x.shape[2:]) == tuple(side - 2 * self.margin for side in self.shape[1:])
            remedy = f"; pad them first: torch.nn.functional.pad(x, ({self.margin},) * 4, mode='replicate')" if bare else ""
            raise UserError(f"images of shape {tuple(x.shape)} given; these experts take (B, {', '.join(map(str, self.shape))}){remedy}")
        if not x.is_floating_point() or len(x) and not bool(torch.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise UserError("images must be floats in [0, 1] without NaN; divide bytes by 255")
        return x.to(next(self.parameters()))

    @torch.no_grad()
    def invert(self, x: Tensor) -> Inverted:
        """Each image through the expert whose output looks most canonical.

        Args:
            x: floats of any precision in [0, 1], ``(B, C, H, W)``; ``B`` may be 0.

        Raises:
            UserError: for images of another shape or range.
        """
        x, found = self.check(x), []
        if len(x) == 0:
            return Inverted(x, torch.zeros(0, dtype=torch.long, device=x.device), x.new_zeros(0, self.config.experts))
        for part in x.split(_AT_ONCE):
            outputs = self.outputs(part)
            scores = self.scores(outputs).T
            winner = scores.argmax(1)
            found.append((outputs[winner, torch.arange(len(part), device=x.device)], winner, scores))
        return Inverted(*(torch.cat(column) for column in zip(*found, strict=True)))

    def describe(self) -> dict[str, Any]:
        """Plain values that rebuild this; stored with its weights."""
        return {"kind": FOLDER, "shape": list(self.shape), "config": asdict(self.config), "margin": self.margin}

    @classmethod
    def load(cls, run: Path | str, seed: int | None = None, device: str | torch.device = "cpu") -> Self:
        """The experts of a run folder, in eval mode, weights frozen.

        Args:
            seed: which of several trainings; the lowest there is without it.

        Raises:
            RunError: for a folder without experts, or without those of that seed, a damaged file, or broken weights.
        """
        seeds = some_seeds(Path(run))
        if seed is not None and seed not in seeds:
            raise RunError(f"{run} has no experts of seed {seed}, but of {', '.join(map(str, seeds))}; name one of these")
        path = folder_of(Path(run), seed) / WEIGHTS
        state = load(path, FOLDER)
        model = rebuilt(path, lambda: cls(tuple(state["shape"]), ExpertsConfig(**state["config"]), state.get("margin", 0)),
                        state.get("weights"))
        check_finite(model, path, "Train them again with a smaller --learning-rate or a larger --penalty")
        return model.eval().requires_grad_(False).to(device)


def trained_seeds(run: Path) -> list[int]:
    """Seeds whose experts are in a run folder, ascending."""
    names = (path.parent.name for path in (run / FOLDER).glob(f"seed*/{WEIGHTS}"))
    return sorted(int(name.removeprefix("seed")) for name in names if re.fullmatch("seed(0|-?[1-9][0-9]*)", name))


def some_seeds(run: Path) -> list[int]:
    """:func:`trained_seeds`; raises RunError if there are none."""
    if not (seeds := trained_seeds(run)):
        raise RunError(f"{run} has no experts yet; train them first: python -m mechanisms.experts --run {shlex.quote(str(run))}")
    return seeds


def folder_of(run: Path, seed: int | None = None) -> Path:
    """Where the experts of a seed are; of the lowest there is, if none is named.

    Raises:
        RunError: if none is named and there are none.
    """
    return run / FOLDER / f"seed{some_seeds(run)[0] if seed is None else seed}"

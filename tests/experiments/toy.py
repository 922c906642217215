"""A toy data set of discs and squares of 16×16 pixels, and how tests train classifiers of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datasets.registry import open_dataset
from datasets.task import task_of
from experiments.algorithms.registry import ALGORITHMS
from experiments.train import main
from experiments.training.options import Options, TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.trainer import Trainer
from mechanisms.runs.command import run_command
from mechanisms.training.config import RunOptions

TOY = '''
from dataclasses import dataclass

import torch

from datasets import CausalDataset, Variable


@dataclass(eq=False)
class Toy(CausalDataset):
    """A disc or a square, dark or light; the environment is the parity of the row."""

    label = "shape"
    spurious = ("light",)
    true_images_under = ("light",)
    variables = (Variable("shape", "binary", classes=("disc", "square")), Variable("light", "binary", ("shape",), classes=("no", "yes")),
                 Variable("image", "image", ("shape", "light"), shape=(1, 16, 16)))
    recipes = {"*": {"network": "mlp", "hidden": 8, "steps": 12, "batch_size": 32, "validations": 3, "penalty": 7.0},
               "vrex": {"penalty": 9.0}}

    size: int = 96
    parted: bool = True
    alike: bool = False
    dim: float = 0.3

    def environments(self, split):
        return torch.arange(self.size) % 2 if self.parted else None

    def shifts(self):
        return {"unlinked": lambda attributes, g: {"light": torch.randint(2, (len(attributes["shape"]),), generator=g)}}

    def load(self, split):
        return self.world(self.noise(split), {})

    def true_counterfactual(self, split, index, do):
        return self.world(self.noise(split)[index], do)

    def noise(self, split):
        return torch.rand(self.size, 4, generator=torch.Generator().manual_seed(("train", "valid", "test").index(split)))

    def world(self, u, do):
        shape = torch.zeros(len(u), dtype=torch.long) if self.alike else (u[:, 0] < 0.5).long()
        light = do.get("light", torch.where(u[:, 1] < 0.85, shape, 1 - shape))
        x = torch.arange(16) - 7.5
        distance = torch.where(shape[:, None, None] == 1, torch.maximum(x.abs()[:, None], x.abs()), torch.hypot(x[:, None], x[None]))
        image = (distance < 3 + 2 * u[:, 2, None, None]).float() * (self.dim + 0.6 * light[:, None, None])
        return {"shape": shape, "light": light, "image": image[:, None]}
'''
COMMON = ["--device", "cpu", "--precision", "fp32"]
FLAGS = TrainingFlags(device="cpu", precision="fp32")
PLAIN = [name for name, kind in ALGORITHMS.items() if not kind.needs & {"camera", "masks"}]  # what a network without maps can do


def command(toy: str, run: Path, *arguments: str) -> None:
    run_command(Options, main, ["--dataset", toy, "--run", str(run), *COMMON, *arguments])


def trainer(toy: str, run: Path, name: str, seed: int = 0, options: RunOptions | None = None, settings: tuple[str, ...] = (),
            **flags: Any) -> Trainer:
    dataset = open_dataset(toy)
    asked = replace(FLAGS, **flags)
    return Trainer(Rows(task_of(dataset)), resolve(name, dataset, asked, settings, seed), options or RunOptions(run),
                   lambda other: resolve(other, dataset, asked, seed=seed))


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All that is written, with its time."""
    every = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path: (0 if path.suffix == ".tsv" else path.stat().st_mtime_ns, path.read_bytes()) for path in every}  # tables are written anew

"""A new algorithm is one new file: it is found, described, trained in several stages, and its classifier is there for all others."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from experiments.training.store import folder_of, list_trained, load_trained, results
from mechanisms.training.state import MetricsLog

ROOT = Path(__file__).resolve().parents[3]

ALGORITHM = '''
    """Examples that are easy count less, once ERM has been trained for a while."""

    from dataclasses import dataclass

    from datasets.ranges import NotNegative
    from experiments.algorithms.base import Algorithm, cross_entropy


    @dataclass(frozen=True)
    class FocalSettings:
        """Of the focal loss."""

        gamma: NotNegative[float] = 2.0
        """Power of the probability of another class."""


    class Focal(Algorithm):
        """mean_i (1 − p_i)^γ·CE_i, p = exp(−CE) (Lin et al. 2017, *Focal loss for dense object detection*, eq. 4)."""

        name = "focal"
        title = "Focal loss"
        assumes = "what is hard to tell is worth more"
        settings = FocalSettings

        @classmethod
        def learn(cls, trainer):
            first = trainer.fit(trainer.build(), "warm-up", steps=trainer.config.steps // 2)
            return trainer.fit(trainer.build(first.network))

        def objective(self, batch, progress, noise):
            losses = cross_entropy(self.read(batch), batch["label"])
            return {"loss": (1 - (-losses).exp()) ** self.options.gamma * losses, "risk": losses}
'''

DATA = '''
    import torch

    from datasets import CausalDataset, Variable


    class Halves(CausalDataset):
        label = "side"
        variables = (Variable("side", "binary", classes=("left", "right")), Variable("image", "image", parents=("side",), shape=(1, 8, 8)))

        def load(self, split):
            side = torch.arange(40) % 2
            images = 0.2 * torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(len(split)))
            images[:, :, :4] += 0.5 * (1 - side)[:, None, None]
            images[:, :, 4:] += 0.5 * side[:, None, None]
            return {"side": side, "image": images}
'''

PROGRAM = """
    import sys

    import experiments.algorithms

    experiments.algorithms.__path__.append(sys.argv.pop(1))  # as if the file lay in the folder

    from experiments.train import main
    from experiments.training.options import Options
    from mechanisms.runs.command import run_command

    run_command(Options, main, sys.argv[1:])
"""


def test_a_new_algorithm_is_one_new_file(tmp_path):
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "focal.py").write_text(textwrap.dedent(ALGORITHM))
    (tmp_path / "halves.py").write_text(textwrap.dedent(DATA))
    run = tmp_path / "run"

    def train(*arguments: str) -> str:
        asked = ["--dataset", str(tmp_path / "halves.py"), "--run", str(run), "--algorithm", "erm,focal", "--seeds", "2", "--steps", "40",
                 "--network", "mlp", "--hidden", "8", "--batch-size", "20", "--device", "cpu", *arguments]
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "algorithms"), *asked], cwd=ROOT,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = train("--describe")
    assert "focal: Focal loss" in said and "--set focal.gamma=2.0: Power of the probability of another class." in said
    assert "| focal " in train("--set", "gamma=1")
    assert list_trained(run) == [("erm", 0), ("erm", 1), ("focal", 0), ("focal", 1)] and len(results(run)) == 4
    classifier, images = load_trained(run, "focal", 0), torch.zeros(2, 1, 8, 8)
    images[0, 0, :, :4], images[1, 0, :, 4:] = 0.6, 0.6
    assert classifier.predict(images).argmax(1).tolist() == [0, 1] and classifier.description["settings"] == {"gamma": 1.0}
    assert MetricsLog.last(folder_of(run, "focal", 0) / "warm-up" / "metrics.jsonl")["step"] == 20

"""The training loop and its commands: interrupted = uninterrupted, two processes = one, and what is refused.

Commands run in processes of their own, which can be killed. They are forked from a server that has torch imported
already, so that each takes a fraction of a second.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from datasets import Split
from datasets.errors import UserError
from mechanisms.runs.command import run_command
from mechanisms.runs.files import MetricsLog, RunError, load, read_json, save
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.devices import bf16_pays, make_accelerator
from mechanisms.training.hooks import Hooks, check_average, has_statistics
from mechanisms.training.loop import fit, update
from mechanisms.training.noise import Noise
from mechanisms.training.state import Average, Meter, Position, Stop
from tests.errors import naming, says

ROOT = Path(__file__).resolve().parents[3]
STEPS = 90
DATA = ["--dataset", str(ROOT / "docs" / "my_scm.py"), "--option", "size=200"]
COMMON = [*DATA, "--steps", str(STEPS), "--validations", "6", "--batch-size", "32", "--device", "cpu", "--precision", "fp32"]
TINY = ["--encoder", "4b1,1b1", "--decoder", "1b1,4b1", "--widths", "4:8,1:8", "--z-dim", "2", "--embedding", "8", "--bases", "2",
        "--patch", "4"]
COMMANDS = {"pgm": ("pgm.train", COMMON), "image": ("mechanisms.train", [*COMMON, *TINY])}
both = pytest.mark.parametrize("folder", COMMANDS)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "torch.onnx", "mechanisms.training.loop", "mechanisms.image.registry", "pgm.scm",
                               "pgm.train", "mechanisms.train", "datasets.registry", "pytest"])


# ---------------------------------------------------------------------------------------------------- processes
def run_module(module: str, arguments: list[str], errors: str) -> None:
    """What ``python -m module arguments`` does, in a process of its own."""
    os.chdir(ROOT)
    with open(errors, "w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@dataclass
class Command:
    """A training command in the run folder ``run``."""

    folder: str
    run: Path

    def start(self, *more: str) -> Command:
        module, arguments = COMMANDS[self.folder]
        self.run.mkdir(parents=True, exist_ok=True)
        arguments = [*arguments, "--run", str(self.run), *more]
        self.process = SERVER.Process(target=run_module, args=(module, arguments, str(self.run / "stderr")))
        self.process.start()
        return self

    def end(self) -> int:
        self.process.join(60)
        assert self.process.exitcode is not None, "the command hangs"
        return self.process.exitcode

    def finish(self, *more: str) -> Command:
        assert self.start(*more).end() == 0, self.stderr
        return self

    def stop_once(self, condition: Callable[[], bool], number: int) -> int:
        """Send a signal as soon as the condition holds; the exit status."""
        end = time.monotonic() + 60
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.stderr
            time.sleep(0.002)
        os.kill(self.process.pid, number)
        return self.end()

    @property
    def stderr(self) -> str:
        return (self.run / "stderr").read_text()

    @property
    def weights(self) -> dict[str, Tensor]:
        return load(self.run / self.folder / "mechanism.pt")["weights"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows = MetricsLog.read(self.run / self.folder / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    @property
    def step(self) -> int:
        return load(self.run / self.folder / "checkpoint.pt")["position"]["step"]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, Command]:
    return {folder: Command(folder, tmp_path_factory.mktemp(folder)).finish() for folder in COMMANDS}


# ---------------------------------------------------------------------------------------------------- interruptions
@both
def test_a_training_leaves_what_it_says(uninterrupted, folder):
    command = uninterrupted[folder]
    assert [row["step"] for row in command.rows] == [15, 30, 45, 60, 75, 90] and command.step == STEPS
    assert all({"loss"} <= row["train"].keys() and {"loss"} <= row["valid"].keys() for row in command.rows)
    assert command.rows[-1]["valid"]["loss"] < command.rows[0]["valid"]["loss"]
    assert read_json(command.run / folder / "config.json")["training"]["steps"] == STEPS
    assert {p.name for p in (command.run / folder).iterdir()} == {".lock", "checkpoint.pt", "mechanism.pt", "metrics.jsonl", "config.json"}


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_uninterrupted(uninterrupted, folder, number, tmp_path):
    command = Command(folder, tmp_path).start()
    assert command.stop_once(lambda: len(command.rows) >= 2, number) == 130
    assert says(command.stderr, "--resume") and "Traceback" not in command.stderr
    assert 30 <= command.step < STEPS
    command.finish("--resume")
    assert same(command.weights, uninterrupted[folder].weights) and command.rows == uninterrupted[folder].rows


@both
def test_killed_and_resumed_is_uninterrupted(uninterrupted, folder, tmp_path):
    command = Command(folder, tmp_path).start("--checkpoint-seconds", "0.05")
    checkpoint = tmp_path / folder / "checkpoint.pt"
    assert command.stop_once(lambda: checkpoint.exists() and len(command.rows) >= 2, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < command.step < STEPS and all(w.isfinite().all() for w in command.weights.values())
    command.finish("--resume")
    assert same(command.weights, uninterrupted[folder].weights) and command.rows == uninterrupted[folder].rows


@both
def test_resuming_what_is_finished_changes_nothing(uninterrupted, folder):
    command = uninterrupted[folder]
    rows, weights = command.rows, command.weights
    command.finish("--resume")
    assert command.rows == rows and same(command.weights, weights)


@both
def test_another_seed_is_another_training(uninterrupted, folder, tmp_path):
    assert not same(Command(folder, tmp_path).finish("--seed", "1").weights, uninterrupted[folder].weights)


def test_two_trainings_cannot_share_a_folder(tmp_path):
    first = Command("pgm", tmp_path).start("--steps", "100000")
    while not first.run.joinpath("pgm", "config.json").exists():
        time.sleep(0.002)
    second = Command("pgm", tmp_path).start("--overwrite")
    assert second.end() == 2 and says(second.stderr, "error:", "--run")
    assert first.stop_once(lambda: True, signal.SIGTERM) == 130


def test_two_processes_train_as_one_does(uninterrupted, tmp_path):
    """``torchrun`` on the CPU: same global batches and same noise, so only rounding differs."""
    script = tmp_path / "both.py"
    script.write_text(textwrap.dedent(f"""
        import os, sys
        import torch
        from datasets.errors import UserError
        from mechanisms.runs.command import run_command
        import mechanisms.train, pgm.train
        run = ["--run", {str(tmp_path)!r}]
        run_command(pgm.train.Options, pgm.train.main, [*{COMMANDS["pgm"][1]!r}, *run])
        run_command(mechanisms.train.Options, mechanisms.train.main, [*{COMMANDS["image"][1]!r}, *run])
        try:
            run_command(pgm.train.Options, pgm.train.main, [*{COMMANDS["pgm"][1]!r}, *run, "--batch-size", "5", "--overwrite"])
        except SystemExit as error:
            print("odd batch: exit", error.code)
        torch.distributed.destroy_process_group()
    """))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("odd batch: exit 2") == 2 and says(done.stderr, "--batch-size 5 2")
    for folder, one in uninterrupted.items():
        two = Command(folder, tmp_path)
        for name, weight in two.weights.items():
            torch.testing.assert_close(weight, one.weights[name], rtol=1e-2, atol=5e-3, msg=lambda m, n=name: f"{n}: {m}")
        for row, other in zip(two.rows, one.rows, strict=True):
            assert row["step"] == other["step"]
            assert row["valid"]["loss"] == pytest.approx(other["valid"]["loss"], rel=1e-3)
            # the log holds the first process's half of the batches
            assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=0.2, abs=0.2)


# ---------------------------------------------------------------------------------------------------- a toy in this process
class Toy(nn.Module):
    """Fits x = 3; ``seen`` records the weight at every update."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []

    def forward(self, batch, noise, progress=1.0):
        if self.training:
            self.seen.append(self.weight.item())
        return {"loss": (self.weight + 0.1 * noise(len(batch["x"]), 1)[:, 0] - batch["x"]).square()}


def rows(value: float = 3.0, count: int = 64) -> Split:
    return Split("train", torch.zeros(count, 1, 2, 2, dtype=torch.uint8), {"x": torch.full((count,), value)})


CONFIG = TrainingConfig(steps=40, batch_size=16, learning_rate=0.1, warmup=5, device="cpu", precision="fp32")
DESCRIPTION = {"kind": "toy", "graph": {"variables": []}}


def train(folder: Path, config: TrainingConfig = CONFIG, options: RunOptions = RunOptions(), train: Split | None = None,
          valid: Split | None = None, description: dict = DESCRIPTION, model: nn.Module | None = None, **changes: Any) -> nn.Module:
    return fit(model or Toy(), train or rows(), valid or rows(), replace(config, **changes), folder, description, options)


RESUME, OVERWRITE = RunOptions(resume=True), RunOptions(overwrite=True)


def test_existing_training_needs_a_word(tmp_path):
    train(tmp_path)
    kept = (tmp_path / "mechanism.pt").read_bytes()
    with pytest.raises(RunError, match=naming(tmp_path, "--resume --overwrite")):
        train(tmp_path)
    assert (tmp_path / "mechanism.pt").read_bytes() == kept and len(MetricsLog.read(tmp_path / "metrics.jsonl")) == 10
    train(tmp_path, options=OVERWRITE, steps=20, validations=4)
    assert [row["step"] for row in MetricsLog.read(tmp_path / "metrics.jsonl")] == [5, 10, 15, 20]


def test_resume_refuses_another_configuration_or_model(tmp_path):
    train(tmp_path)
    with pytest.raises(RunError, match=naming("learning_rate 0.1 → 0.2 --run --overwrite")):
        train(tmp_path, options=RESUME, learning_rate=0.2)
    with pytest.raises(RunError, match=naming("batch_size 16 → 8 seed 0 → 1")):
        train(tmp_path, options=RESUME, batch_size=8, seed=1)
    with pytest.raises(RunError, match=naming("checkpoint.pt graph variables [] ['x']")):
        train(tmp_path, options=RESUME, description={**DESCRIPTION, "graph": {"variables": ["x"]}})
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:500])
    with pytest.raises(RunError, match=naming("checkpoint.pt")):
        train(tmp_path, options=RESUME)


def test_resume_without_a_training_begins_one(tmp_path, capsys):
    train(tmp_path, options=RESUME)
    assert says(capsys.readouterr().err, tmp_path) and (tmp_path / "mechanism.pt").exists()


def test_budget_may_grow_on_resume(tmp_path):
    train(tmp_path)
    train(tmp_path, options=RESUME, steps=80)
    found = [row["step"] for row in MetricsLog.read(tmp_path / "metrics.jsonl")]
    assert found == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80]


def files(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_what_is_finished_is_only_read(tmp_path):
    """Also the files that do not change when they are written again."""
    weight, before = train(tmp_path).weight.item(), files(tmp_path)
    assert train(tmp_path, options=RESUME).weight.item() == weight and files(tmp_path) == before
    with pytest.raises(RunError, match=naming("checkpoint.pt 40 20 --run --overwrite")):
        train(tmp_path, options=RESUME, steps=20)
    assert files(tmp_path) == before


def test_weights_that_were_not_written_in_the_end_are(tmp_path):
    """Killed between the last checkpoint and its weights."""
    weight = train(tmp_path).weight.item()
    state = load(tmp_path / "mechanism.pt")
    save(tmp_path / "mechanism.pt", {**state, "step": 36, "weights": {"weight": torch.tensor(0.0)}})
    assert train(tmp_path, options=RESUME).weight.item() == weight and load(tmp_path / "mechanism.pt")["step"] == 40


def test_overwriting_leaves_nothing_of_the_old_training(tmp_path):
    """A new training that dies before its first checkpoint must not let --resume bring the old one back."""

    class Broken(Toy):
        def forward(self, batch, noise, progress=1.0):
            raise KeyError("a bug")

    train(tmp_path)
    with pytest.raises(KeyError):
        train(tmp_path, options=OVERWRITE, model=Broken())
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "mechanism.pt").exists()


def test_few_steps_are_validated_once_each(tmp_path):
    train(tmp_path, steps=3)
    found = MetricsLog.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3] and all(row["train"] for row in found)


def test_validating_does_not_disturb_the_training(tmp_path):
    often, seldom = (train(tmp_path / str(n), validations=n).seen for n in (20, 1))
    assert often == seldom and len(often) == 40


def test_same_seed_same_training(tmp_path):
    first, second, third = (train(tmp_path / str(k), seed=seed).seen for k, seed in enumerate((5, 5, 6)))
    assert first == second != third


def test_epochs_and_minutes_are_budgets(tmp_path):
    assert len(train(tmp_path / "epochs", steps=None, epochs=2.5).seen) == 10
    began = time.monotonic()
    model = train(tmp_path / "minutes", steps=None, minutes=0.01)
    assert len(model.seen) > 10 and 0.5 < time.monotonic() - began < 5
    assert MetricsLog.read(tmp_path / "minutes" / "metrics.jsonl")[-1]["step"] == len(model.seen)


def test_large_batches_shrink_to_the_split(tmp_path):
    assert len(train(tmp_path, steps=None, epochs=3, batch_size=1000).seen) == 3


@pytest.mark.parametrize("changes, message", [
    ({"steps": None}, "--epochs --steps --minutes"),
    ({"minutes": 1.0}, "--epochs --steps --minutes"),
    ({"steps": -3}, "--steps -3"),
    ({"steps": 0}, "--steps 0"),
    ({"steps": None, "minutes": float("nan")}, "--minutes nan"),
    ({"steps": None, "epochs": float("inf")}, "--epochs inf"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"learning_rate": -1.0}, "--learning-rate -1.0"),
    ({"learning_rate": float("nan")}, "--learning-rate nan"),
    ({"validations": 0}, "--validations 0"),
    ({"warmup": -1}, "--warmup -1"),
    ({"workers": -1}, "--workers -1"),
    ({"weight_decay": -0.1}, "--weight-decay -0.1"),
    ({"beta2": 1.0}, "--beta2 1.0"),
    ({"ema": 1.0}, "--ema 1.0 [0, 1)"),
    ({"patience": 0}, "--patience 0 1"),
    ({"device": "cuda"}, "--device cuda cpu"),
])
def test_numbers_that_make_no_sense(tmp_path, changes, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=naming(message)):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_no_warmup_is_allowed(tmp_path):
    train(tmp_path, warmup=0, steps=2)


# ---------------------------------------------------------------------------------------------------- averages and gradients
def test_average_follows_its_formula():
    model = Toy()
    average, expected = Average(model, decay=0.9), 0.0
    for step in range(200):
        model.weight.data.fill_(step**0.5)
        average.update(step)
        decay = min(0.9, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * step**0.5
    assert average.values[0].item() == pytest.approx(expected, rel=1e-5)
    with average:
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == pytest.approx(199**0.5)


def test_averaged_weights_are_kept_and_evaluated(tmp_path):
    model = train(tmp_path, ema=0.95)
    state = load(tmp_path / "checkpoint.pt")
    assert model.weight.item() == state["average"][0].item() != state["model"]["weight"].item()
    expected = rows().attributes["x"][0] - model.weight.item()
    valid = MetricsLog.read(tmp_path / "metrics.jsonl")[-1]["valid"]["loss"]
    assert valid == pytest.approx(expected.square().item() + 0.01, abs=0.05 * (expected.abs().item() + 0.1))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_best_or_last_weights(tmp_path, keep):
    """Validation rows say x = 1, training rows 3: the best weights are those that pass 1 on their way."""
    kept = train(tmp_path, valid=rows(1.0), keep=keep, validations=40, ema=0.5, learning_rate=0.2).weight.item()
    assert abs(kept - 1) < 0.15 if keep == "best" else kept > 2
    losses = [row["valid"]["loss"] for row in MetricsLog.read(tmp_path / "metrics.jsonl")]
    assert load(tmp_path / "checkpoint.pt")["position"]["best"] == min(losses) < losses[-1]


def test_patience_ends_a_training_that_gets_worse(tmp_path):
    """Validation rows say x = 1, training rows 3: soon after the weight has passed 1, three validations in a row are no better."""
    stopped = train(tmp_path, valid=rows(1.0), keep="best", validations=40, ema=0.5, learning_rate=0.2, patience=3)
    found = MetricsLog.read(tmp_path / "metrics.jsonl")
    losses = [row["valid"]["loss"] for row in found]
    assert len(losses) < 40 and min(losses) == losses[-4] and abs(stopped.weight.item() - 1) < 0.15
    assert len(stopped.seen) == found[-1]["step"] == load(tmp_path / "checkpoint.pt")["position"]["step"]
    again = train(tmp_path, valid=rows(1.0), keep="best", validations=40, ema=0.5, learning_rate=0.2, patience=3, options=RESUME)
    assert again.seen == [] and MetricsLog.read(tmp_path / "metrics.jsonl") == found and again.weight == stopped.weight


def test_patience_outlasts_an_interruption(tmp_path, monkeypatch):
    settings = {"valid": rows(1.0), "keep": "best", "validations": 40, "ema": 0.5, "learning_rate": 0.2, "patience": 3}
    train(tmp_path / "whole", **settings)
    calls = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mechanisms.training.loop.agree", lambda values, *_: (values[0], len(calls) > 4 or calls.append(1), values[2]))
        train(tmp_path / "parts", **settings)
    train(tmp_path / "parts", **settings, options=RESUME)
    whole, parts = (MetricsLog.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [row["valid"] for row in parts] == [row["valid"] for row in whole]


def test_a_criterion_decides_which_weights_are_best(tmp_path):
    """Of weights on their way from 0 to 3, those are kept whose loss on rows that say 1 is nearest to a half."""
    weight = fit(Toy(), rows(), rows(1.0), replace(CONFIG, keep="best", validations=40, ema=0.5, learning_rate=0.2), tmp_path, DESCRIPTION,
                 hooks=Hooks(criterion=lambda means: abs(means["loss"] - 0.5))).weight.item()
    losses = [row["valid"]["loss"] for row in MetricsLog.read(tmp_path / "metrics.jsonl")]
    assert load(tmp_path / "checkpoint.pt")["position"]["best"] == min(abs(loss - 0.5) for loss in losses)
    assert abs((weight - 1) ** 2 + 0.01 - 0.5) < 0.2


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_part_of_the_model_can_be_what_is_kept(tmp_path, keep):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = Toy(), nn.Parameter(torch.zeros(1))

        def forward(self, batch, noise, progress=1.0):
            return {"loss": self.inner(batch, noise)["loss"] + self.other.square()}

    outer = Outer()
    kept = fit(outer, rows(), rows(), replace(CONFIG, keep=keep), tmp_path, DESCRIPTION, hooks=Hooks(outer.inner))
    assert kept is outer.inner and not kept.training and kept.weight.item() > 1
    assert load(tmp_path / "mechanism.pt")["weights"] == {"weight": kept.weight}
    assert load(tmp_path / "checkpoint.pt")["model"].keys() == {"inner.weight", "other"}


def test_updates_are_clipped_and_skipped():
    model = Toy()
    optimizer, at, accelerator = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0), Position(), Accelerator(cpu=True)
    average = Average(model, 0.5)

    def step(gradient: float) -> float:
        before = model.weight.item()
        model.weight.grad = torch.tensor([gradient])
        update(accelerator, model, optimizer, replace(CONFIG, clip=2.0, skip=10.0), at, average)
        return model.weight.item() - before

    assert step(float("nan")) == 0 and at.skipped == 1  # before any norm is known
    assert step(1.0) < 0 and at.in_a_row == 0
    assert step(-5.0) != 0
    assert float(optimizer.state[model.weight]["exp_avg"]) == pytest.approx(0.09 - 0.2)  # −5 was clipped to −2
    assert step(float("nan")) == step(float("inf")) == step(1000.0) == 0 and at.skipped == 4
    changes = [step(60.0) for _ in range(50)]  # a lasting change of scale is let through
    assert changes[0] == 0 and changes[-1] != 0 and at.in_a_row == 0


def test_after_skips_in_a_row_weights_go_back_to_their_average():
    model = Toy()
    optimizer, at, accelerator = torch.optim.AdamW(model.parameters(), lr=0.1), Position(), Accelerator(cpu=True)
    average = Average(model, 0.9)
    for gradient in [1.0] * 5 + [float("nan")] * 4:
        model.weight.grad = torch.tensor([gradient])
        update(accelerator, model, optimizer, CONFIG, at, average)
    assert model.weight.item() != average.values[0].item()
    model.weight.grad = torch.tensor([float("nan")])
    update(accelerator, model, optimizer, CONFIG, at, average)
    assert model.weight.item() == average.values[0].item() and at.in_a_row == 5
    assert float(optimizer.state[model.weight]["exp_avg"]) == 0


def test_broken_rows_do_not_destroy_the_weights(tmp_path):
    split = rows()
    split.attributes["x"][7] = float("nan")
    model = train(tmp_path, train=split)
    last = MetricsLog.read(tmp_path / "metrics.jsonl")[-1]
    assert last["skipped"] == 10 and 0 < model.weight.item() < 4 and last["valid"]["loss"] < 9  # one batch in four


def test_broken_rows_do_not_destroy_what_is_remembered(tmp_path):
    """Batch norm's statistics, and a running mean that guards nothing itself: as if the broken batches had never been."""
    class Norm(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, batch, noise, progress=1.0):
            self.norm(batch["x"][:, None])
            if self.training:
                self.mean.lerp_(batch["x"].mean(), 0.1)
            return super().forward(batch, noise, progress)

    split = rows()
    split.attributes["x"][7] = float("nan")
    model = fit(Norm(), split, rows(), CONFIG, tmp_path, DESCRIPTION)
    assert MetricsLog.read(tmp_path / "metrics.jsonl")[-1]["skipped"] == 10
    state = load(tmp_path / "checkpoint.pt")["model"]
    assert all(value.isfinite().all() for value in state.values()) and int(state["norm.num_batches_tracked"]) == 30
    assert state["mean"] == pytest.approx(float(model.norm.running_mean), rel=1e-4) and abs(state["mean"]) > 0.1


def test_divergence_says_what_to_do_and_keeps_the_checkpoint(tmp_path):
    train(tmp_path)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(RunError, match=naming("89 50 --learning-rate --warmup")):
        train(tmp_path, train=rows(float("nan")), options=RESUME, steps=200)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept and "diverged" not in load(tmp_path / "mechanism.pt")


@pytest.mark.parametrize("rate", [1e30, 1e19])
@pytest.mark.parametrize("changes", [{}, {"keep": "best"}, {"patience": 2}, {"optimizer": "sgd"}, {"ema": 0.0}], ids=str)
def test_a_training_that_has_diverged_at_its_end_fails(tmp_path, rate, changes):
    """Fewer updates than would be skipped in a row until the loop gives up."""
    with pytest.raises(RunError, match=naming(tmp_path, "--learning-rate")):
        train(tmp_path, learning_rate=rate, warmup=0, steps=30, **changes)
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "mechanism.pt").exists()


def test_no_checkpoint_is_written_of_weights_that_are_not_sound(tmp_path):
    with pytest.raises(RunError, match=naming(tmp_path, "30 --learning-rate")):
        train(tmp_path, learning_rate=1e30, warmup=0, steps=30, checkpoint_seconds=0.0)
    state = load(tmp_path / "checkpoint.pt")
    assert state["position"]["step"] == 0 and state["model"]["weight"] == load(tmp_path / "mechanism.pt")["weights"]["weight"] == 0


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_of_a_training_that_diverges_late_the_last_sound_state_is_kept(tmp_path, seconds):
    class Late(Toy):
        looks = 0

        def forward(self, batch, noise, progress=1.0):
            self.looks += not self.training
            return {"loss": super().forward(batch, noise, progress)["loss"] * (math.nan if self.looks > 9 else 1)}

    with pytest.raises(RunError, match=naming(tmp_path, "40 --learning-rate --warmup")):
        train(tmp_path, model=Late(), valid=rows(count=16), checkpoint_seconds=seconds)
    kept = load(tmp_path / "mechanism.pt")
    assert 0 < kept["weights"]["weight"] < 3 and (kept["step"], kept.get("diverged")) == ((39, None) if seconds == 0 else (36, 40))
    assert (tmp_path / "checkpoint.pt").exists() == (seconds == 0)


def test_a_resumed_training_that_diverges_keeps_its_checkpoint(tmp_path):
    train(tmp_path)
    kept = files(tmp_path)
    with pytest.raises(RunError, match=naming(tmp_path, "60 --learning-rate --warmup")):
        train(tmp_path, options=RESUME, valid=rows(math.nan), steps=60)
    assert all(files(tmp_path)[name] == kept[name] for name in ("checkpoint.pt", "mechanism.pt"))


@both
def test_a_command_that_diverges_fails(tmp_path, folder):
    command = Command(folder, tmp_path).start("--learning-rate", "1e30", "--steps", "30")
    assert command.end() == 2
    assert says(command.stderr, command.run / folder, "--learning-rate") and "Traceback" not in command.stderr
    assert not (command.run / folder / "mechanism.pt").exists()


def test_divergence_before_a_checkpoint_promises_none(tmp_path):
    with pytest.raises(RunError, match=naming(tmp_path, "--warmup")):
        train(tmp_path, train=rows(float("nan")), steps=200, validations=1)
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "mechanism.pt").exists()


def test_second_interrupt_stops_at_once():
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is earlier


def test_meter_is_a_mean_since_the_last_row():
    meter = Meter()
    meter.add({"loss": torch.tensor([1.0, 3.0])})
    meter.add({"loss": torch.tensor([4.0])})
    assert meter.flush() == {"loss": 3.0} and meter.flush() == {}


# ---------------------------------------------------------------------------------------------------- noise and precision
def test_noise_of_two_processes_is_that_of_one():
    one, two = Noise(3), [Noise(3, rank=rank, world=2) for rank in (0, 1)]
    for _ in range(3):
        assert torch.equal(one(6, 2, 2), torch.cat([noise(3, 2, 2) for noise in two]))


def test_noise_goes_on_where_it_was():
    noise, other = Noise(3), Noise(3)
    noise(5, 2)
    state = noise.generator.get_state()
    other.restore(state, step=1)
    assert torch.equal(other(4, 2), noise(4, 2))
    foreign = [Noise(3), Noise(3), Noise(3)]  # a GPU's state is 16 bytes: --resume may change the device
    for noise, step in zip(foreign, (7, 7, 8), strict=True):
        noise.restore(torch.zeros(16, dtype=torch.uint8), step)
    first, second, third = (noise(4, 2) for noise in foreign)
    assert torch.equal(first, second) and not torch.equal(first, third) and not torch.equal(first, Noise(3)(4, 2))


class Matrix(nn.Module):
    """A matrix product, which autocast makes in half precision; ``types`` records in which."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.types = nn.Linear(4, 4), set()

    def forward(self, batch, noise, progress=1.0):
        product = self.linear(noise(len(batch["x"]), 4))
        self.types.add(product.dtype)
        return {"loss": (product - 1).square().sum(1)}


def test_precision_is_per_training_and_ends_with_it(tmp_path):
    """Two mechanisms trained in one process may differ; and a trained model computes as the same one loaded."""
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = train(tmp_path, model=Matrix(), options=OVERWRITE, precision=precision)
        assert model.types == {dtype} and model.linear.weight.dtype == torch.float32
        loaded = Matrix().eval()
        loaded.load_state_dict(load(tmp_path / "mechanism.pt")["weights"])
        left, right = (m({"x": torch.zeros(5)}, Noise(0))["loss"] for m in (model, loaded))
        assert torch.equal(left, right)


def test_auto_precision_is_what_the_hardware_offers():
    expected = "bf16" if bf16_pays(torch.device("cpu")) else "no"
    assert make_accelerator("cpu", "auto").mixed_precision == expected
    assert make_accelerator("cpu", "fp32").mixed_precision == "no"


def test_tensorboard_events(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, options=RunOptions(tensorboard=True))
    board = events.EventAccumulator(str(tmp_path))
    board.Reload()
    assert {"train/loss", "valid/loss"} <= set(board.Tags()["scalars"])
    logged = [row["valid"]["loss"] for row in MetricsLog.read(tmp_path / "metrics.jsonl")]
    assert [event.value for event in board.Scalars("valid/loss")] == pytest.approx(logged)


# ---------------------------------------------------------------------------------------------------- command lines
def options_of(folder: str):
    module = runpy.importlib.import_module(COMMANDS[folder][0])
    return module.Options, module.main


@both
@pytest.mark.parametrize("arguments, status, message", [
    (["--stepz", "3"], 2, "--steps"),
    (["--dataset", "mnits"], 2, "'mnits' cameratraps coloredmnist"),
    (["--dataset", "absent.py"], 2, "absent.py"),
    (["--precision", "fp16"], 2, "bf16"),
    ([*DATA, "--option", "sizes=3"], 2, "no option 'sizes'; valid are size"),
    ([*DATA, "--steps", "3", "--epochs", "1"], 2, "give exactly one budget"),
    ([*DATA, "--batch_size", "-1"], 2, "--batch-size -1 must be at least 1"),
])
def test_mistakes_on_the_command_line(tmp_path, capsys, folder, arguments, status, message):
    options, main = options_of(folder)
    with pytest.raises(SystemExit) as caught:
        run_command(options, main, [*arguments, "--run", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert caught.value.code == status and says(error, message) and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--mechanism", "gan"], "unknown image mechanism 'gan'; valid are hvae, vae"),
    (["--mixing", "1.5"], "--mixing 1.5 must lie in [0, 1]"),
    (["--components", "0"], "--components 0 must lie in [1, 1000]"),
    (["--preset", "huge"], "unknown preset 'huge'; valid are cpu, reference"),
    (["--widths", "4:8"], "lacks resolution"),
    (["--preset", "reference"], "image size / patch is 16"),
])
def test_mistakes_about_the_image_mechanism(tmp_path, capsys, arguments, message):
    options, main = options_of("image")
    with pytest.raises(SystemExit) as caught:
        run_command(options, main, [*DATA, *arguments, "--run", str(tmp_path / "run")])
    assert caught.value.code == 2 and says(capsys.readouterr().err, message) and not (tmp_path / "run").exists()


def test_run_folder_belongs_to_one_data_set(uninterrupted, capsys):
    options, main = options_of("image")
    run = uninterrupted["pgm"].run
    with pytest.raises(SystemExit):
        run_command(options, main, [*DATA[:2], "--option", "size=100", "--run", str(run), "--steps", "1"])
    told = capsys.readouterr().err
    assert says(told, run, "size=100") and not (run / "image").exists()


def test_averages_do_not_go_with_statistics_of_other_weights():
    plain, normed = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert has_statistics(normed) and not has_statistics(plain)
    for model, ema in ((plain, 0.9), (plain, 0.0), (normed, 0.0)):
        check_average(model, ema, "--network x")
    with pytest.raises(UserError, match=naming("--ema 0.9 --network x 0")):
        check_average(normed, 0.9, "--network x")


def test_a_training_asks_its_hooks(tmp_path):
    seen, asked = [], []

    def augment(batch, generator, rank, world):
        asked.append((float(torch.rand(1, generator=generator)), rank, world))
        return {**batch, "x": batch["x"] + 1}

    hooks = Hooks(rules={"first": lambda means: len(seen)}, watch=seen.append, augment=augment)
    weight = fit(Toy(), rows(), rows(), CONFIG, tmp_path, DESCRIPTION, hooks=hooks).weight.item()
    assert len(seen) == 10 and len(set(asked)) == 40 and {a[1:] for a in asked} == {(0, 1)}
    assert weight > train(tmp_path / "without").weight.item()
    assert load(tmp_path / "mechanism.pt")["selected"]["first"]["step"] == 4

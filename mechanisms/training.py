"""The one training loop, for every mechanism: flows, hierarchical VAE, predictors.

Read :func:`fit` from top to bottom. A model is any module whose ``forward(batch, noise, progress)`` returns a dict of
``(B,)`` tensors, of which ``loss`` is minimised and all are logged. What resumes bit for bit does so because each
update depends on nothing but the checkpointed state: the order of rows is a function of seed and epoch, the noise is
one seeded stream (:class:`mechanisms.noise.Noise`), and learning rate and warm-ups are functions of progress.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.base import Split
from datasets.errors import UserError
from mechanisms.augment import Augmentation
from mechanisms.checkpoint import MetricsLog, RunError, load, locked, save, write_json
from mechanisms.noise import Noise
from mechanisms.options import RunOptions, TrainingConfig

CHECKPOINT, WEIGHTS, METRICS, CONFIG = "checkpoint.pt", "mechanism.pt", "metrics.jsonl", "config.json"
_BUDGETS = ("epochs", "steps", "minutes")
_MAY_CHANGE = {*_BUDGETS, "device", "workers", "checkpoint_seconds"}
_MAX_SKIPPED = 50

Batch = dict[str, Tensor]


def bf16_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(test() for test in tests if test)


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Device, precision and processes; under ``torchrun`` one process per device (gloo on the CPU).

    Raises:
        RunError: for a device that this machine does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device != "auto" and not available[device]:
        raise RunError(f"--device {device} is not available here; available: {', '.join(d for d, ok in available.items() if ok)}")
    cpu = device == "cpu" or not (available["cuda"] or available["mps"])
    probe = torch.device("cpu" if cpu else "cuda" if available["cuda"] else "mps")
    bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(probe))
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train several mechanisms, each in its precision
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no")


class _Rows(Dataset):
    """Adapts a split to a DataLoader: item = all rows of one batch, so that the order stays ours.

    An error that the user can mend is returned, not raised: a DataLoader would bury it under a worker's traceback.
    """

    def __init__(self, split: Split, batches: list[Tensor]) -> None:
        self.split, self.batches = split, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Batch | UserError:
        try:
            return self.split.batch(self.batches[k])
        except UserError as error:
            return UserError(str(error))


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: the training stops after its update, so its workers must live on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(split: Split, order: Tensor, size: int, rank: int, world: int, workers: int = 0, start: int = 0) -> Iterator[Batch]:
    """This process's rows of each global batch, from batch ``start`` on; read ahead by workers if not in memory."""
    share = size // world
    chunks = [order[k + rank * share : k + (rank + 1) * share] for k in range(start * size, len(order) - size + 1, size)]
    if split.in_memory or not workers:
        yield from (split.batch(rows) for rows in chunks)
    else:
        for batch in DataLoader(_Rows(split, chunks), batch_size=None, num_workers=workers, worker_init_fn=_leave_signals_to_parent):
            if isinstance(batch, UserError):
                raise batch
            yield batch


class Average:
    """Exponential moving average of a model's parameters; young averages follow faster (t+1)/(t+10)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.source = decay, list(model.parameters())
        self.values = [p.detach().clone() for p in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.source], weight)

    def load(self, values: list[Tensor]) -> None:
        for mine, saved in zip(self.values, values, strict=True):
            mine.copy_(saved)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and present weights, in place."""
        for value, parameter in zip(self.values, self.source, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    def __enter__(self) -> Self:
        self.swap()
        return self

    def __exit__(self, *_: object) -> None:
        self.swap()


@dataclass
class Position:
    """Where a training stands; all of it is checkpointed."""

    step: int = 0
    elapsed: float = 0.0
    norm: float = 0.0  # running gradient norm
    skipped: int = 0
    in_a_row: int = 0
    validated: int = 0
    best: float = math.inf


class Meter:
    """Means of the training terms since the last row of the log."""

    def __init__(self, sums: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.sums = dict(sums or {})
        self.count = count

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.detach().float().mean()
        self.count += 1

    def flush(self) -> dict[str, float]:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Log:
    """``metrics.jsonl`` and, if asked for, TensorBoard events."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.rows = MetricsLog(folder / METRICS, step)
        self.board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise RunError("--tensorboard needs the tensorboard package: pip install tensorboard") from None
            self.board = SummaryWriter(folder)

    def write(self, row: Mapping[str, Any]) -> None:
        self.rows.write(row)
        if self.board:
            for part in ("train", "valid"):
                for name, value in row[part].items():
                    self.board.add_scalar(f"{part}/{name}", value, row["step"])
            self.board.flush()


class Stop(AbstractContextManager):
    """Turns Ctrl-C and SIGTERM into a request to stop after the present update; a second Ctrl-C stops at once."""

    def __enter__(self) -> Self:
        self.requested = False
        self._earlier = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._earlier[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: the caller's handling stays
                break
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)


def fit(
    model: nn.Module,
    train: Split,
    valid: Split,
    config: TrainingConfig,
    folder: Path,
    description: Mapping[str, Any],
    options: RunOptions = RunOptions(),
    augment: Augmentation | None = None,
) -> nn.Module:
    """Train ``model`` into ``folder`` and return it with the kept weights, in eval mode.

    Leaves ``config.json``, ``metrics.jsonl`` (one row per validation), ``checkpoint.pt`` (to resume) and
    ``mechanism.pt`` (to use: ``description`` and the averaged weights).

    Args:
        description: what rebuilds the model, plain values only: ``kind``, ``graph``, ``config``, ….
        augment: see :mod:`mechanisms.augment`; applied to training batches.

    Raises:
        RunError: for a folder that is in use, holds another training, or cannot be written; for a diverged training.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    config.check()
    accelerator = make_accelerator(config.device, config.precision)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    size = min(config.batch_size, len(train) // world * world)
    if size == 0 or size % world:
        raise RunError(f"--batch-size {size} must be a positive multiple of the {world} processes")
    per_epoch = len(train) // size
    total = config.steps or (math.ceil(config.epochs * per_epoch) if config.epochs else None)

    with locked(folder) if rank == 0 else nullcontext():
        resumed = _find_training(folder, config, description, options)
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2),
                                      weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda"))
        average = Average(model, config.ema)
        noise = Noise(config.seed, device, rank, world)
        at, best = Position(), None
        if resumed:
            model.load_state_dict(resumed["model"])
            optimizer.load_state_dict(resumed["optimizer"])
            average.load(resumed["average"])
            at, best = Position(**resumed["position"]), resumed["best"]
            noise.restore(resumed["noise"], at.step)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        accelerator.wait_for_everyone()  # nobody writes before everybody has read
        if rank == 0 and not resumed:
            for name in (CHECKPOINT, WEIGHTS):  # a kill before the first checkpoint must not bring the old training back
                (folder / name).unlink(missing_ok=True)
        log = Log(folder, at.step, options.tensorboard) if rank == 0 else None
        if log:
            write_json(folder / CONFIG, {"training": asdict(config), **description})

        def checkpoint() -> None:
            if rank:
                return
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values,
                     "noise": noise.generator.get_state(), "position": asdict(at), "best": best,
                     "meter": {"sums": meter.sums, "count": meter.count}}
            save(folder / CHECKPOINT, {"kind": "training", "config": asdict(config), "description": dict(description), **state})
            with average:
                weights = best if best is not None and config.keep == "best" else copy_state(model)
            save(folder / WEIGHTS, {**description, "weights": weights, "step": at.step})

        def validate() -> None:
            nonlocal best
            model.eval()
            with average:
                scores = evaluate(wrapped, valid, size, Noise(config.seed + 1, device, rank, world), accelerator)
                if scores["loss"] < at.best:
                    at.best, best = scores["loss"], copy_state(model)
            model.train()
            if log:
                log.write({"step": at.step, "epoch": at.step / per_epoch, "seconds": round(at.elapsed, 3),
                           "learning_rate": optimizer.param_groups[0]["lr"], "gradient_norm": at.norm,
                           "skipped": at.skipped, "train": meter.flush(), "valid": scores})
            bar.set_postfix(valid=f"{scores['loss']:.4g}", refresh=False)

        meter, saved = Meter(**resumed["meter"]) if resumed else Meter(), time.monotonic()
        began = saved - at.elapsed
        bar = tqdm(total=total or 100, initial=at.step if total else 0, unit="step" if total else "%", desc=folder.name,
                   disable=rank > 0, dynamic_ncols=True, mininterval=0.5)
        model.train()
        progress, interrupted = 0.0, False
        if resumed:  # the budget may have changed
            progress = at.step / total if total else at.elapsed / (60 * config.minutes)
            at.validated = min(at.validated, int(progress * config.validations))
        with Stop() as stop, bar:
            while progress < 1 and not interrupted:
                epoch, first = divmod(at.step, per_epoch)
                order = torch.randperm(len(train), generator=seeded(config.seed, epoch))
                for batch in batches(train, order, size, rank, world, config.workers, first):
                    at.elapsed = time.monotonic() - began
                    progress = at.step / total if total else at.elapsed / (60 * config.minutes)
                    overdue = at.elapsed + began - saved > config.checkpoint_seconds
                    progress, interrupted, overdue = agree((progress, stop.requested, overdue), world, device)
                    due = min(int(progress * config.validations), config.validations - 1)
                    if at.validated < due and progress < 1:
                        validate()
                        at.validated = due
                    if progress >= 1 or interrupted:
                        break
                    if overdue:
                        checkpoint()
                        saved = time.monotonic()
                    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                    if augment is not None:
                        batch = augment(batch, seeded(config.seed, at.step), rank, world)
                    rate = min(1.0, (at.step + 1) / max(1, config.warmup)) * 0.5 * (1 + math.cos(math.pi * progress))
                    for group in optimizer.param_groups:
                        group["lr"] = config.learning_rate * rate
                    terms = wrapped(batch, noise, progress)
                    optimizer.zero_grad(set_to_none=True)
                    accelerator.backward(terms["loss"].mean())
                    update(accelerator, model, optimizer, config, at)
                    average.update(at.step)
                    meter.add(terms)
                    at.step += 1
                    bar.update(1 if total else min(100, int(100 * progress)) - bar.n)
            if not interrupted and at.validated < config.validations:
                validate()
                at.validated = config.validations
        checkpoint()
        accelerator.wait_for_everyone()
    if interrupted:
        print(f"stopped at step {at.step}; the same command with --resume continues", file=sys.stderr)
        raise KeyboardInterrupt
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # so that the model computes as it will when it is loaded
    model.load_state_dict(load(folder / WEIGHTS)["weights"])
    return model.eval()


def update(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig, at: Position) -> None:
    """One optimiser step, unless the gradient is broken: clipped at ``clip``, skipped at ``skip`` × the running norm.

    Raises:
        RunError: after 50 skipped updates in a row; the checkpoint on disk is from before.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
    if math.isfinite(norm) and (at.norm == 0 or norm < config.skip * at.norm):
        optimizer.step()
        at.norm = norm if at.norm == 0 else 0.98 * at.norm + 0.02 * norm
        at.in_a_row = 0
        return
    at.skipped, at.in_a_row = at.skipped + 1, at.in_a_row + 1
    at.norm *= 1.05  # a lasting change of scale is let through in the end
    if at.in_a_row >= _MAX_SKIPPED:
        raise RunError(f"training diverged at step {at.step} (gradient norm {norm:g}, {at.in_a_row} updates skipped in a row). "
                       "The last checkpoint is kept; lower --learning-rate or raise --warmup")


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, size: int, noise: Noise, accelerator: Accelerator) -> dict[str, float]:
    """Mean of each term over a split; each process takes its share of the rows (at most ``world − 1`` are left out)."""
    world, sums, rows = accelerator.num_processes, {}, 0
    for start in range(0, len(split), size):
        share = min(size, len(split) - start) // world
        if share == 0:
            continue
        first = start + accelerator.process_index * share
        batch = {name: value.to(accelerator.device) for name, value in split.batch(slice(first, first + share)).items()}
        for name, term in model(batch, noise, 1.0).items():
            sums[name] = sums.get(name, 0.0) + term.float().sum()
        rows += share * world
    totals = accelerator.reduce(torch.stack([torch.as_tensor(v) for v in sums.values()]), "sum")
    return {name: float(value) / rows for name, value in zip(sums, totals, strict=True)}


def agree(values: tuple[float, bool, bool], world: int, device: torch.device) -> tuple[float, bool, bool]:
    """Progress as the first process sees it, and flags that hold if any process raised them."""
    if world == 1:
        return values
    progress = torch.tensor([float(values[0])], dtype=torch.float64, device=device)  # in float32, 75/90 of 6 is less than 5
    flags = torch.tensor([float(values[1]), float(values[2])], device=device)
    torch.distributed.broadcast(progress, 0)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return float(progress), bool(flags[0]), bool(flags[1])


def seeded(*keys: int) -> torch.Generator:
    """A generator that is a function of the keys."""
    seed = 0
    for key in keys:
        seed = (seed * 1_000_003 + key + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _find_training(folder: Path, config: TrainingConfig, description: Mapping[str, Any], options: RunOptions) -> dict[str, Any] | None:
    """The checkpoint to continue from, or nothing to begin anew; refuses to overwrite or to mix trainings.

    Raises:
        RunError: without ``--resume`` or ``--overwrite`` in a folder that holds one; on resume, for another model or
            another configuration (budget, device and the like may change).
    """
    path = folder / CHECKPOINT
    if not path.exists():
        if options.resume:
            print(f"nothing to resume in {folder}: beginning anew", file=sys.stderr)
        return None
    if options.overwrite:
        return None
    if not options.resume:
        raise RunError(f"{folder} already holds a training; --resume continues it, --overwrite begins anew")
    state = load(path, "training")
    if state["description"] != dict(description):
        keys = [k for k in description if state["description"].get(k) != description[k]]
        raise RunError(f"{path} is of another model (its {', '.join(keys)} differ); choose another --run, or --overwrite")
    now = asdict(config)
    changed = [f"{k} {state['config'].get(k)} → {now[k]}" for k in now if k not in _MAY_CHANGE and state["config"].get(k) != now[k]]
    if changed:
        raise RunError(f"cannot resume {path} with another configuration: {'; '.join(changed)}")
    return state

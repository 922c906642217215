"""The one training loop, for every mechanism: flows, hierarchical VAE, predictors.

Read :func:`fit` from top to bottom. A model is any module whose ``forward(batch, noise, progress)`` returns a dict of
``(B,)`` tensors, of which ``loss`` is minimised and all are logged. What resumes bit for bit does so because each
update depends on nothing but the checkpointed state: the order of rows is a function of seed and epoch, the noise is
one seeded stream (:class:`mechanisms.training.noise.Noise`), and learning rate and warm-ups are functions of progress.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from datasets.base import Split
from mechanisms.runs.files import RunError, locked, understanding, write_json
from mechanisms.training.batches import batches_from
from mechanisms.training.checkpoint import MILDER, State, take_weights
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.devices import agree, make_accelerator, prepared
from mechanisms.training.hooks import Hooks
from mechanisms.training.noise import Noise, seeded
from mechanisms.training.resume import BEGIN_ANEW, check_same, find_training, finished_training
from mechanisms.training.state import CHECKPOINT, CONFIG, WEIGHTS, Average, Log, Position, Remembered, Stop

_REWIND = 5  # skipped updates in a row before weights go back to their average
_MAX_SKIPPED = 50


def fit(model: nn.Module, train: Split, valid: Split, config: TrainingConfig, folder: Path, description: Mapping[str, Any],
        options: RunOptions = RunOptions(), hooks: Hooks = Hooks()) -> nn.Module:
    """Train ``model`` into ``folder`` and return it (or ``hooks.kept``) with the kept weights, in eval mode.

    Leaves ``config.json``, ``metrics.jsonl`` (one row per validation), ``checkpoint.pt`` (to resume) and
    ``mechanism.pt`` (to use: ``description`` and the averaged weights; ``diverged``, an update, if it did before its first
    checkpoint). On resume, a training whose budget is spent is only read.

    Args:
        description: what rebuilds the model, plain values only: ``kind``, ``graph``, ``config``, ….

    Raises:
        RunError: for a folder that is in use, holds another training, or cannot be written; for a diverged training.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    config.check()
    kept, accelerator = hooks.kept or model, make_accelerator(config.device, config.precision)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    size, total = global_batch(config, len(train), world), updates_of(config, len(train), world)
    if options.resume and not options.overwrite and (finished := finished_training(folder, config, total)):
        return _read(model.to(device), kept, folder, finished, config, total, description)

    with locked(folder) if rank == 0 else nullcontext(), ExitStack() as undo:
        resumed = find_training(folder, config, total, description, options)
        optimizer = make_optimizer(model.to(device), config, device)
        state = State(model, optimizer, config, folder, total, description, hooks, Noise(config.seed, device, rank, world))
        if resumed:
            state.restore(resumed)
        wrapped, state.optimizer = undo.enter_context(prepared(accelerator, model, optimizer))
        remembered = Remembered(model)
        accelerator.wait_for_everyone()  # nobody writes before everybody has read
        log = _begun(state, options, anew=not resumed) if rank == 0 else None
        at, progress, interrupted = state.at, state.progress, False
        bar = tqdm(total=total or 100, initial=at.step if total else 0, unit="step" if total else "%",
                   desc=f"{folder.parent.name}/{folder.name}", disable=rank > 0 or progress >= 1, dynamic_ncols=True, mininterval=0.5)
        look = partial(_validate, state, wrapped, valid, size, accelerator, log, len(train) // size, bar)
        model.train()
        with Stop() as stop, bar:
            batches = batches_from(train, hooks.seeds or config.seed, at.step, size, rank, world, config.workers, device)
            for batch in () if state.over else batches:
                progress, overdue = state.tick()
                progress, interrupted, overdue = agree((progress, stop.requested, overdue), world, device)
                due = min(int(progress * config.validations), config.validations - 1)
                if at.validated < due and progress < 1:
                    look(due)
                if progress >= 1 or interrupted or at.gives_up(config.patience):
                    break
                if overdue and not at.in_a_row and rank == 0 and state.sound():  # other weights make every update fail
                    state.write()
                batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                if hooks.augment is not None:
                    batch = hooks.augment(batch, seeded(config.seed, at.step), rank, world)
                if (due := sum(progress >= share for share in hooks.restarts)) > at.restarted:
                    state.optimizer.state.clear()
                at.restarted = due
                for group in state.optimizer.param_groups:
                    group["lr"] = config.learning_rate * min(1.0, (at.step + 1) / max(1, config.warmup)) * fall(config, progress)
                remembered.keep()
                terms = wrapped(batch, state.noise, progress)
                state.optimizer.zero_grad(set_to_none=True)
                accelerator.backward(terms["loss"].mean())
                try:
                    if not math.isfinite(update(accelerator, model, state.optimizer, config, at, state.average)):
                        remembered.restore()
                except RunError as error:
                    raise state.diverged(error, writes=rank == 0) from None
                state.meter.add(terms)
                at.step += 1
                bar.update(1 if total else min(100, int(100 * progress)) - bar.n)
            if not interrupted and at.validated < config.validations and not at.gives_up(config.patience):
                look(config.validations)
        try:
            state.check()
        except RunError as error:
            raise state.diverged(error, writes=rank == 0) from None
        if rank == 0:
            state.write()
        accelerator.wait_for_everyone()
    if interrupted:
        print(f"stopped at step {at.step}; the same command with --resume continues", file=sys.stderr)
        raise KeyboardInterrupt
    take_weights(kept, folder / WEIGHTS)
    return kept.eval()


def _read(model: nn.Module, kept: nn.Module, folder: Path, finished: Mapping[str, Any], config: TrainingConfig, total: int | None,
          description: Mapping[str, Any]) -> nn.Module:
    """The model of a training whose budget is spent."""
    check_same(finished, folder / CHECKPOINT, config, total, description)
    with understanding(folder / CHECKPOINT, BEGIN_ANEW):
        model.load_state_dict(finished["model"])
    take_weights(kept, folder / WEIGHTS)
    return kept.eval()


def _begun(state: State, options: RunOptions, anew: bool) -> Log:
    """The log of a training in its folder, with ``config.json``."""
    if anew:
        for name in (CHECKPOINT, WEIGHTS):  # a kill before the first checkpoint must not bring the old training back
            (state.folder / name).unlink(missing_ok=True)
    log = Log(state.folder, state.at.step, options.tensorboard)
    write_json(state.folder / CONFIG, {"training": asdict(state.config), **state.description})
    return log


def _validate(state: State, wrapped: nn.Module, valid: Split, size: int, accelerator: Accelerator, log: Log | None, per_epoch: int,
              bar: tqdm, number: int) -> None:
    """The ``number``-th look at the validation split, with averaged weights and the same noise every time."""
    config, at = state.config, state.at
    state.model.eval()
    with state.average:
        noise = Noise(config.seed + 1, accelerator.device, accelerator.process_index, accelerator.num_processes)
        means = evaluate(wrapped, valid, min(len(valid), config.validation_rows), size, noise, accelerator)
        state.judge(means)
    state.model.train()
    if log:
        state.hooks.watch(means)
        log.write({"step": at.step, "epoch": at.step / per_epoch, "seconds": round(at.elapsed, 3),
                   "learning_rate": state.optimizer.param_groups[0]["lr"], "gradient_norm": at.norm,
                   "skipped": at.skipped, "train": state.meter.flush(), "valid": means})
    bar.set_postfix(valid=f"{means['loss']:.4g}", refresh=False)
    at.validated = number


def make_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, over all parameters."""
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": device.type in ("cpu", "cuda")}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.beta1, **settings)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    return kind(model.parameters(), betas=(config.beta1, config.beta2), **settings)


def fall(config: TrainingConfig, progress: float) -> float:
    """What the peak learning rate is multiplied by at this progress, in [0, 1]."""
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    return 0.5 * (1 + math.cos(math.pi * progress))


def updates_of(config: TrainingConfig, rows: int, world: int) -> int | None:
    """How many updates the budget amounts to; None where it is a time."""
    return config.steps or (math.ceil(config.epochs * (rows // global_batch(config, rows, world))) if config.epochs else None)


def global_batch(config: TrainingConfig, rows: int, world: int) -> int:
    """Rows per update over all processes: no more than there are, and as many for each process.

    Raises:
        RunError: for a batch size that the processes cannot share.
    """
    size = min(config.batch_size, rows // world * world)
    if size == 0 or size % world:
        raise RunError(f"--batch-size {size} must be a positive multiple of the {world} processes")
    return size


def update(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig, at: Position,
           average: Average) -> float:
    """One optimiser step, unless the gradient is broken: clipped at ``clip``, skipped at ``skip`` × the running norm.

    Where one skip follows another, the last step led astray: weights go back to their average and momentum is dropped. Returns the norm.

    Raises:
        RunError: where even that does not help.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
    if math.isfinite(norm) and (at.norm == 0 or norm < config.skip * at.norm):
        optimizer.step()
        average.update(at.step)
        at.norm = norm if at.norm == 0 else 0.98 * at.norm + 0.02 * norm
        at.in_a_row = 0
        return norm
    at.skipped, at.in_a_row = at.skipped + 1, at.in_a_row + 1
    at.norm *= 1.05  # a lasting change of scale is let through in the end
    if at.in_a_row % _REWIND == 0:
        average.restore()
        for state in optimizer.state.values():
            for name in ("exp_avg", "momentum_buffer"):
                if state.get(name) is not None:
                    state[name].zero_()
    if at.in_a_row >= _MAX_SKIPPED:
        raise RunError(f"training diverged at step {at.step} (gradient norm {norm:g}, {at.in_a_row} updates skipped in a row); "
                       f"{MILDER}")
    return norm


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, count: int, size: int, noise: Noise, accelerator: Accelerator) -> dict[str, float]:
    """Mean of each term over the first ``count`` rows; each process takes its share (at most ``world − 1`` are left out)."""
    world, sums, rows = accelerator.num_processes, {}, 0
    for start in range(0, count, size):
        share = min(size, count - start) // world
        if share == 0:
            continue
        first = start + accelerator.process_index * share
        batch = {name: value.to(accelerator.device) for name, value in split.batch(slice(first, first + share)).items()}
        for name, term in model(batch, noise, 1.0).items():
            sums[name] = sums.get(name, 0.0) + term.float().sum()
        rows += share * world
    totals = accelerator.reduce(torch.stack([torch.as_tensor(v) for v in sums.values()]), "sum")
    return {name: float(value) / rows for name, value in zip(sums, totals, strict=True)}

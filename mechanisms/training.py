"""The one training loop, for every mechanism: flows, hierarchical VAE, predictors.

Read :func:`fit` from top to bottom. A model is any module whose ``forward(batch, noise, progress)`` returns a dict of
``(B,)`` tensors, of which ``loss`` is minimised and all are logged. What resumes bit for bit does so because each
update depends on nothing but the checkpointed state: the order of rows is a function of seed and epoch, the noise is
one seeded stream (:class:`mechanisms.noise.Noise`), and learning rate and warm-ups are functions of progress.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from datasets.base import Split
from mechanisms.augment import Augmentation
from mechanisms.batches import epoch_of
from mechanisms.bookkeeping import CHECKPOINT, CONFIG, WEIGHTS, Average, Log, Meter, Position, Stop
from mechanisms.checkpoint import RunError, load, locked, save, understanding, write_json
from mechanisms.devices import agree, make_accelerator, prepared
from mechanisms.noise import Noise, seeded
from mechanisms.options import RunOptions, TrainingConfig
from mechanisms.resuming import BEGIN_ANEW, check_same, find_training, finished_training

Criterion = Callable[[Mapping[str, float]], float]  # of a validation's means of terms; the less the better
_REWIND = 5  # skipped updates in a row before weights go back to their average
_MAX_SKIPPED = 50
_LARGEST = torch.finfo(torch.float32).max ** 0.5  # of a weight whose square is finite
MILDER = "lower --learning-rate or raise --warmup"


def fit(
    model: nn.Module,
    train: Split,
    valid: Split,
    config: TrainingConfig,
    folder: Path,
    description: Mapping[str, Any],
    options: RunOptions = RunOptions(),
    augment: Augmentation | None = None,
    kept: nn.Module | None = None,
    criterion: Criterion = lambda means: means["loss"],
    rules: Mapping[str, Criterion] | None = None,
    restarts: Collection[int] = (),
    seeds: Sequence[int] = (),
    watch: Callable[[Mapping[str, float]], None] = lambda means: None,
) -> nn.Module:
    """Train ``model`` into ``folder`` and return it with the kept weights, in eval mode.

    Leaves ``config.json``, ``metrics.jsonl`` (one row per validation), ``checkpoint.pt`` (to resume) and
    ``mechanism.pt`` (to use: ``description`` and the averaged weights; ``diverged``, an update, if it did before its first
    checkpoint). On resume, a training whose budget is spent is only read.

    Args:
        description: what rebuilds the model, plain values only: ``kind``, ``graph``, ``config``, ….
        augment: see :mod:`mechanisms.augment`; applied to training batches.
        kept: the part of ``model`` whose weights go to ``mechanism.pt`` and which is returned, if not all of it.
        criterion: of two validations' means of terms, the one where this is less is the better one.
        rules: further criteria by name. The averaged weights that each likes best are in ``mechanism.pt`` too, with their
            step and score: ``selected = {rule: {"step", "score", "weights"}}``.
        restarts: updates before which the optimiser begins anew, where an objective changes abruptly.
        seeds: of a model that is several at once, see :mod:`experiments.stacked`: each batch holds the rows that every one of
            them would get under its own seed, ``(S, B, …)``; a batch that is the whole split, ``(B, …)``, is the same for all.
        watch: gets the means of terms of each validation, to warn of a training that goes nowhere while it runs.

    Raises:
        RunError: for a folder that is in use, holds another training, or cannot be written; for a diverged training.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    config.check()
    kept = model if kept is None else kept
    accelerator = make_accelerator(config.device, config.precision)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    size = global_batch(config, len(train), world)
    per_epoch = len(train) // size
    total = updates_of(config, len(train), world)
    if options.resume and not options.overwrite and (state := finished_training(folder, config, total)):
        check_same(state, folder / CHECKPOINT, config, total, description)
        with understanding(folder / CHECKPOINT, BEGIN_ANEW):
            model.to(device).load_state_dict(state["model"])
        take_weights(kept, folder / WEIGHTS)
        return kept.eval()

    with locked(folder) if rank == 0 else nullcontext(), ExitStack() as undo:
        resumed = find_training(folder, config, total, description, options)
        model.to(device)
        optimizer = make_optimizer(model, config, device)
        average = Average(model, config.ema)
        noise = Noise(config.seed, device, rank, world)
        at, best, selected, good, healthy = Position(), None, {}, {}, True
        if resumed:
            with understanding(folder / CHECKPOINT, BEGIN_ANEW):
                model.load_state_dict(resumed["model"])
                optimizer.load_state_dict(resumed["optimizer"])
                average.load(resumed["average"])
                at, best, selected = Position(**resumed["position"]), resumed["best"], resumed.get("selected", {})
                noise.restore(resumed["noise"], at.step)
        wrapped, optimizer = undo.enter_context(prepared(accelerator, model, optimizer))
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
                     "noise": noise.generator.get_state(), "position": asdict(at), "best": best, "selected": selected,
                     "meter": {"sums": meter.sums, "count": meter.count}}
            save(folder / CHECKPOINT, {"kind": "training", "config": asdict(config), "description": dict(description), **state})
            with average:
                weights = best if best is not None else copy_state(kept)
            save(folder / WEIGHTS, {**description, "weights": weights, "step": at.step, **({"selected": selected} if rules else {})})

        def validate() -> None:
            nonlocal best, healthy
            model.eval()
            with average:
                count, fixed = min(len(valid), config.validation_rows), Noise(config.seed + 1, device, rank, world)
                scores = evaluate(wrapped, valid, count, size, fixed, accelerator)
                at.waited += 1
                if (score := criterion(scores)) < at.best:
                    at.best, at.waited = score, 0
                    best = copy_state(kept) if config.keep == "best" else None
                healthy = math.isfinite(scores["loss"]) and sound(model, average)
                if healthy:
                    good.update(step=at.step, weights=copy_state(kept))
                for name, rule in (rules or {}).items():
                    if name not in selected or math.isnan(selected[name]["score"]) or rule(scores) < selected[name]["score"]:
                        selected[name] = {"step": at.step, "score": rule(scores), "weights": copy_state(kept)}
            model.train()
            if log:
                watch(scores)
                log.write({"step": at.step, "epoch": at.step / per_epoch, "seconds": round(at.elapsed, 3),
                           "learning_rate": optimizer.param_groups[0]["lr"], "gradient_norm": at.norm,
                           "skipped": at.skipped, "train": meter.flush(), "valid": scores})
            bar.set_postfix(valid=f"{scores['loss']:.4g}", refresh=False)

        def keep_sound() -> str:
            """What is left of a training that diverged, in words; what came after the last sound weights may be finite and broken."""
            if good and rank == 0 and not (folder / WEIGHTS).exists():
                save(folder / WEIGHTS, {**description, **good, "diverged": at.step})
                return f". Weights of step {good['step']}, the last that validation found sound, are in {folder / WEIGHTS}"
            return ". The last checkpoint is kept" if (folder / CHECKPOINT).exists() else ". No state was sound, so none is kept"

        meter, saved = Meter(**resumed["meter"]) if resumed else Meter(), time.monotonic()
        began = saved - at.elapsed
        model.train()
        progress, interrupted = 0.0, False
        if resumed:  # the budget may have changed
            progress = at.step / total if total else at.elapsed / (60 * config.minutes)
            at.validated = min(at.validated, int(progress * config.validations))
        bar = tqdm(total=total or 100, initial=at.step if total else 0, unit="step" if total else "%",
                   desc=f"{folder.parent.name}/{folder.name}", disable=rank > 0 or progress >= 1, dynamic_ncols=True, mininterval=0.5)
        with Stop() as stop, bar:
            while progress < 1 and not interrupted and not at.gives_up(config.patience):
                epoch, first = divmod(at.step, per_epoch)
                for batch in epoch_of(train, seeds or config.seed, epoch, size, rank, world, config.workers, first, device):
                    at.elapsed = time.monotonic() - began
                    progress = at.step / total if total else at.elapsed / (60 * config.minutes)
                    overdue = at.elapsed + began - saved > config.checkpoint_seconds
                    progress, interrupted, overdue = agree((progress, stop.requested, overdue), world, device)
                    due = min(int(progress * config.validations), config.validations - 1)
                    if at.validated < due and progress < 1:
                        validate()
                        at.validated = due
                    if progress >= 1 or interrupted or at.gives_up(config.patience):
                        break
                    if overdue and not at.in_a_row and sound(model, average):  # others make every update fail, and are not worth keeping
                        checkpoint()
                        saved = time.monotonic()
                    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                    if augment is not None:
                        batch = augment(batch, seeded(config.seed, at.step), rank, world)
                    if at.step in restarts:
                        optimizer.state.clear()
                    for group in optimizer.param_groups:
                        group["lr"] = config.learning_rate * min(1.0, (at.step + 1) / max(1, config.warmup)) * fall(config, progress)
                    terms = wrapped(batch, noise, progress)
                    optimizer.zero_grad(set_to_none=True)
                    accelerator.backward(terms["loss"].mean())
                    try:
                        update(accelerator, model, optimizer, config, at, average)
                    except RunError as error:
                        raise RunError(f"{folder}: {error}{keep_sound()}") from None
                    meter.add(terms)
                    at.step += 1
                    bar.update(1 if total else min(100, int(100 * progress)) - bar.n)
            if not interrupted and at.validated < config.validations and not at.gives_up(config.patience):
                validate()
                at.validated = config.validations
        if not sound(model, average) or not (healthy or interrupted):
            broken = "the loss on validation is not finite" if sound(model, average) else "weights are not finite, or not their squares"
            raise RunError(f"{folder}: training has diverged by step {at.step}: {broken}; {MILDER}{keep_sound()}")
        checkpoint()
        accelerator.wait_for_everyone()
    if interrupted:
        print(f"stopped at step {at.step}; the same command with --resume continues", file=sys.stderr)
        raise KeyboardInterrupt
    take_weights(kept, folder / WEIGHTS)
    return kept.eval()


def take_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of its file; raises RunError where they do not fit."""
    state = load(path)
    with understanding(path, BEGIN_ANEW):
        module.load_state_dict(state["weights"])


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
           average: Average) -> None:
    """One optimiser step, unless the gradient is broken: clipped at ``clip``, skipped at ``skip`` × the running norm.

    Where one skip follows another, the last step led astray: weights go back to their average and momentum is dropped.

    Raises:
        RunError: where even that does not help.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
    if math.isfinite(norm) and (at.norm == 0 or norm < config.skip * at.norm):
        optimizer.step()
        average.update(at.step)
        at.norm = norm if at.norm == 0 else 0.98 * at.norm + 0.02 * norm
        at.in_a_row = 0
        return
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


@torch.no_grad()
def sound(model: nn.Module, average: Average) -> bool:
    """Whether all weights and their averages are finite, and so small that their squares are too."""
    return all(bool((value.abs() < _LARGEST).all()) for value in (*model.parameters(), *average.values) if value.is_floating_point())


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


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all that training changes; parameters without gradient are shared, so that a file has them once."""
    fixed = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {name: value.detach() if name in fixed else value.detach().clone() for name, value in model.state_dict().items()}

"""Where to compute, in which precision, and how processes agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from mechanisms.runs.files import RunError


def bf16_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(test() for test in tests if test)


def find_device(name: str) -> torch.device:
    """``auto`` takes the accelerator if there is one.

    Raises:
        RunError: for a device that this machine lacks.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [device for device, there in present.items() if there]
    if name not in ("auto", *available):
        raise RunError(f"--device {name} is not available here; available: {', '.join(available)}")
    return torch.device(available[0] if name == "auto" else name)


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Device, precision and processes; under ``torchrun`` one process per device (gloo on the CPU).

    Raises:
        RunError: for a device that this machine lacks.
    """
    found = find_device(device)
    bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(found))
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train several mechanisms, each in its precision
    return Accelerator(cpu=found.type == "cpu", mixed_precision="bf16" if bf16 else "no")


@contextmanager
def prepared(accelerator: Accelerator, model: nn.Module, *others: Any) -> Iterator[tuple[Any, ...]]:
    """What ``accelerator.prepare`` makes of these; in the end ``model`` computes as it did before, and can be prepared anew.

    Accelerate marks what it has prepared, and leaves what bears the mark as it is: a module that was prepared to be measured
    would afterwards be trained without autocast, in whatever precision was asked for.
    """
    made = accelerator.prepare(model, *others)
    wrapped = made[0] if others else made
    try:
        yield made if others else (made,)
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        for name in ("forward", "_is_accelerate_prepared"):
            vars(model).pop(name, None)


def agree(values: tuple[float, bool, bool], world: int, device: torch.device) -> tuple[float, bool, bool]:
    """Progress as the first process sees it, and flags that hold if any process raised them."""
    if world == 1:
        return values
    progress = torch.tensor([float(values[0])], dtype=torch.float64, device=device)  # in float32, 75/90 of 6 is less than 5
    flags = torch.tensor([float(values[1]), float(values[2])], device=device)
    torch.distributed.broadcast(progress, 0)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return float(progress), bool(flags[0]), bool(flags[1])

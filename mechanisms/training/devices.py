"""Where to compute, in which precision, and how processes agree."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

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


def agree(values: tuple[float, bool, bool], world: int, device: torch.device) -> tuple[float, bool, bool]:
    """Progress as the first process sees it, and flags that hold if any process raised them."""
    if world == 1:
        return values
    progress = torch.tensor([float(values[0])], dtype=torch.float64, device=device)  # in float32, 75/90 of 6 is less than 5
    flags = torch.tensor([float(values[1]), float(values[2])], device=device)
    torch.distributed.broadcast(progress, 0)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return float(progress), bool(flags[0]), bool(flags[1])

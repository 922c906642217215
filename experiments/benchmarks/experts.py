"""What ``experiments.benchmark`` measures of experts that compete: what many of them cost."""

from __future__ import annotations

import statistics
import time

import torch

from experiments.benchmarks.base import Bench, measurement
from mechanisms.experts.competition import Competition
from mechanisms.experts.model import Experts
from mechanisms.experts.options import DEFAULTS, ExpertsConfig
from mechanisms.training.devices import find_device
from mechanisms.training.loop import make_optimizer
from mechanisms.training.noise import Noise

_UPDATES = 40


@measurement("ten_experts_against_one", "times", None, 4)
def ten_experts_against_one(bench: Bench) -> tuple[float, str]:
    """Median time of an update of ten experts and their discriminator, over that of one expert and it."""
    ten, one = (_seconds_per_update(count, bench) for count in (10, 1))
    return ten / one, f"{1000 * ten:.0f} against {1000 * one:.0f} ms, {DEFAULTS.batch_size} images of 32×32"


def _seconds_per_update(experts: int, bench: Bench) -> float:
    device = find_device(bench.device)
    torch.manual_seed(bench.seed)
    model = Competition(Experts((1, 32, 32), ExpertsConfig(experts=experts))).to(device).train()
    optimizer, noise = make_optimizer(model, DEFAULTS, device), Noise(bench.seed, device)
    images = torch.rand(DEFAULTS.batch_size, 1, 32, 32, device=device)
    batch, taken = {"image": images, "canonical": (255 * images).to(torch.uint8)}, []
    for _ in range(_UPDATES):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(batch, noise, 0.1)["loss"].mean().backward()
        optimizer.step()
        float(model.usage[0])  # waits for an accelerator
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[_UPDATES // 4:])

"""How fast this machine is: a few real steps of a distillation, smaller ones where they are too large for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from dmdistill.commands.plan.dry_run import Cost, DryRun

__all__ = ["Speed", "free_memory", "measure_speed"]

REPEATS = 3  # steps whose median counts
LONGEST = 30.0  # seconds that one of them may take


@dataclass(frozen=True)
class Speed:
    """Operations per second, for each phase's steps and for sampling, and where they come from, in words."""

    rates: dict[str, float]
    source: str

    def seconds(self, phase: str, flops: float) -> float:
        """Return how long so many operations of a phase take."""
        return flops / self.rates[phase]


def measure_speed(run: DryRun, costs: dict[str, Cost], *, sampling: str) -> Speed:
    """Time a step of each phase, and the teacher's evaluation.

    Args:
        run: with data.
        costs: of a step of each phase, and of sampling, at the full batch.
        sampling: the name of sampling in `costs` and in the result.
    """
    config, device = run.config, run.distillation.rng.device
    full = (config.batch, config.regression.batch_reg)
    resize(run, full, 0.0)
    longest = max(seconds(partial(run.iterate, phase.first), device) for phase in run.distillation.phases.phases)
    images = max(full) / config.memory.accumulate  # times as many as in that first step
    room = min((free_memory(device) / sum(cost.memory.values()) for cost in costs.values()), default=1.0)
    share = min(1.0, room, LONGEST / (longest * images))
    resize(run, full, share)
    rates = {
        phase.name: measure_rate(run, partial(run.iterate, phase.first), device)
        for phase in run.distillation.phases.phases
    }
    images = max(1, int(share * run.sampling_batch))
    rates[sampling] = measure_rate(run, partial(run.evaluate_teacher, images), device)
    smaller = f", in steps of {share:.0%} of each batch, since full ones would take too long" if share < 1 else ""
    return Speed(rates, f"timed on this machine, {device}{smaller}")


def resize(run: DryRun, full: tuple[int, int], share: float) -> None:
    """Take this share of the full batches, at least one image in each microbatch."""
    parts = run.config.memory.accumulate
    batch, batch_reg = (parts * max(1, int(share * size / parts)) for size in full)
    run.resize(batch=batch, batch_reg=batch_reg)


def measure_rate(run: DryRun, work: Callable[[], object], device: torch.device) -> float:
    """Return operations per second of some work, which is counted in a first run that warms up."""
    with run.counting() as costs:
        work()
    return costs[0].flops / median(seconds(work, device) for _ in range(REPEATS))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time some work once."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

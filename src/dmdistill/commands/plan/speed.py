"""How fast this machine is: a few real steps of a distillation, smaller ones where they are too large for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.plan.dry_run import Counted, Rehearsal

__all__ = ["Speed", "calibrate", "free_memory"]

TIMED = 3  # steps whose median counts
PATIENCE = 30.0  # seconds that one of them may take


@dataclass(frozen=True)
class Speed:
    """Operations per second, of each phase's steps and of drawing. words: where they come from."""

    rates: dict[str, float]
    words: str

    def seconds(self, phase: str, flops: float) -> float:
        return flops / self.rates[phase]


def calibrate(job: Rehearsal, counted: dict[str, Counted], *, drawing: str) -> Speed:
    """Time each phase of a rehearsal with data, and the teacher's answers, under the name of `drawing`.

    counted: what a step of each takes at the whole batch.
    """
    whole, device = job.config, job.run.device
    resize(job, whole, 0.0)
    longest = max(timed(partial(job.iterate, phase.first), device) for phase in job.course.phases)
    images = max(whole.batch, whole.batch_reg) / whole.accumulate  # times as many as in that first step
    room = min((free_memory(device) / sum(one.memory.values()) for one in counted.values()), default=1.0)
    share = min(1.0, room, PATIENCE / (longest * images))
    resize(job, whole, share)
    rates = {}
    for phase in job.course.phases:
        rates[phase.name] = rate(job, partial(job.iterate, phase.first), device)
    rates[drawing] = rate(job, partial(job.ask_teacher, max(1, int(share * job.many))), device)
    smaller = f", in steps of {share:.0%} of each batch, which the whole would take too long" if share < 1 else ""
    return Speed(rates, f"timed on this machine, {device}{smaller}")


def resize(job: Rehearsal, whole: DistillConfig, share: float) -> None:
    """This share of the whole batches, at least one image in each part."""
    parts = whole.accumulate
    sizes = {name: parts * max(1, int(share * getattr(whole, name) / parts)) for name in ("batch", "batch_reg")}
    job.config = replace(job.config, **sizes)


def rate(job: Rehearsal, work: Callable[[], object], device: torch.device) -> float:
    """Operations per second of the work, which is counted in a first run that warms up."""
    with job.counting() as counted:
        work()
    return counted[0].flops / median(timed(work, device) for _ in range(TIMED))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

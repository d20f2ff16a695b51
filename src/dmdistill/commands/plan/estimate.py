"""The result of `dmdistill plan`, and how it is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Estimate", "Work", "print_estimate"]

PARTS = ("teacher", "generator", "fake score", "gathered", "gradients", "optimizer", "EMAs", "batch", "activations")


@dataclass(frozen=True)
class Work:
    """One part of a run: its name, the operations of all processes together, and the seconds until it is done."""

    name: str
    flops: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a distillation takes.

    Attributes:
        processes: how many there are.
        batch: generated images of one process's step.
        batch_reg: pairs of one process's step; 0 without a regression.
        memory: bytes by part at the peak of one process, for each phase, for sampling and, before networks are sharded,
            for pairs that the run makes itself.
        host: most bytes of whole networks in the host's memory of a process that shards them; 0 where there are none.
        offloaded: bytes of the teacher's shards that a process keeps in the host's memory.
        flops_per_step: of one process, by phase; a multiplication and an addition are two operations.
        work: the parts of the run, in their order.
        speed: where the speed comes from, in words.
    """

    processes: int
    batch: int
    batch_reg: int
    memory: dict[str, dict[str, int]]
    host: int
    offloaded: int
    flops_per_step: dict[str, int]
    work: list[Work]
    speed: str

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by part, where their sum is largest."""
        return max(self.memory.values(), key=lambda parts: sum(parts.values()))

    @property
    def hours(self) -> float:
        """Hours until the run is done."""
        return sum(work.seconds for work in self.work) / 3600

    def numbers(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        total = {"memory_peak": sum(self.peak.values()), "flops": sum(work.flops for work in self.work)}
        return asdict(self) | total | {"hours": self.hours, "device_hours": self.hours * self.processes}


def print_estimate(estimate: Estimate) -> None:
    """Print a table of the memory, one of the time, and a summary."""
    console = Console(highlight=False)
    memory = Table("memory of a process, MB", *estimate.memory)
    for part in dict.fromkeys([*PARTS, *(part for parts in estimate.memory.values() for part in parts)]):
        sizes = [parts.get(part, 0) for parts in estimate.memory.values()]
        if any(sizes):
            memory.add_row(part, *(f"{size / 1e6:.1f}" for size in sizes))
    memory.add_row("sum", *(f"{sum(parts.values()) / 1e6:.1f}" for parts in estimate.memory.values()))
    console.print(memory)
    table = Table("work", "TFLOP", "time")
    for work in estimate.work:
        table.add_row(work.name, f"{work.flops / 1e12:.4g}", format_hours(work.seconds / 3600))
    table.add_row("sum", f"{sum(work.flops for work in estimate.work) / 1e12:.4g}", format_hours(estimate.hours))
    console.print(table)
    for line in summary(estimate):
        console.print(line, soft_wrap=True, markup=False)


def format_hours(hours: float) -> str:
    """Format a time in hours, or in minutes where it is less than one."""
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"


def summary(estimate: Estimate) -> list[str]:
    """Return the estimate in sentences."""
    single = estimate.processes == 1
    device_hours = "" if single else f", {estimate.hours * estimate.processes:.3g} device-hours"
    pairs = f" and {estimate.batch_reg} pairs" if estimate.batch_reg else ""
    lines = [
        f"{'one process' if single else f'{estimate.processes} processes'} of {estimate.batch} generated images"
        f"{pairs} a step: {sum(estimate.peak.values()) / 1e9:.3g} GB{'' if single else ' each'}, "
        f"{format_hours(estimate.hours)}{device_hours}, {estimate.speed}"
    ]
    if estimate.host:
        lines.append(f"each has whole networks of {estimate.host / 1e9:.3g} GB in the host's memory first")
    if estimate.offloaded:
        lines.append(f"each keeps {estimate.offloaded / 1e9:.3g} GB of the teacher in the host's memory")
    lines.append(
        "not counted: workspace of kernels, feature extractors; of communication its time and the backend's own buffers"
    )
    return lines

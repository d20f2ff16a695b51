"""Memory estimates of `dmdistill plan` beside the memory of a process for two steps, on the CPU.

    python benchmarks/plan_memory.py [fashion cifar10 ...] [--batches 32 96]

The networks are those of `step.py`, with the settings of the bundled one's preset.

Measured twice: the live tensors, counted while real steps run, and the growth of a process's peak resident memory
(VmHWM) from before its networks are built, after the same steps with one image have loaded all code. The allocator
returns large blocks at once (MALLOC_MMAP_THRESHOLD_); otherwise its spare memory is measured too.
"""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager

import torch
from resident import peak_resident_size, resident_size, run_json
from rich.console import Console
from rich.table import Table
from step_cases import CASES

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions, change
from dmdistill.commands.plan.dry_run import DryRun, dry_run
from dmdistill.commands.presets import from_preset

MB = 1e6
SIZES = ("planned", "tensors", "resident")


def simulate(config: DistillConfig, *, data: bool, ledger: bool = False) -> AbstractContextManager[DryRun]:
    """Set up a distillation on the CPU in fp32."""
    cpu = torch.device("cpu")
    teacher = CASES[config.teacher].teacher().to(cpu)
    return dry_run(config, teacher, device=cpu, precision=None, data=data, ledger=ledger)


def two_steps(config: DistillConfig) -> None:
    """Run two steps of a distillation."""
    with simulate(config, data=True) as run:
        for _ in range(2):
            run.iterate(config.steps - 1)


def measure_memory(config: DistillConfig) -> float:
    """Return the growth of peak resident memory, in MB."""
    two_steps(change(config, batch=1, batch_reg=1))
    before = resident_size()
    two_steps(config)
    return (peak_resident_size() - before) / MB


def count_cost(config: DistillConfig, *, data: bool) -> float:
    """Return the MB of tensors at the peak, with data or without."""
    with simulate(config, data=data, ledger=True) as run:
        return sum(run.count(run.distillation.phases.phases[-1]).memory.values()) / MB


def configuration(name: str, batch: int, checkpointing: str) -> DistillConfig:
    """Return the settings of a case."""
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    changes = {"teacher": name, "batch": batch, "batch_reg": batch, "checkpointing": checkpointing}
    return from_preset(DistillConfig, "fashion", **changes, compute=compute)


def row(name: str, batch: int, checkpointing: str) -> list[str]:
    """Return a row of the table; both measurements run in processes of their own."""
    found: dict[str, float] = {}
    for what in ("count", "measure"):
        found |= run_json(__file__, "--one", json.dumps([name, batch, checkpointing]), what, threads=1)
    sizes = [f"{found[size]:.0f}" for size in SIZES]
    return [name, f"{batch} + {batch}", checkpointing, *sizes, f"{found['planned'] / found['resident']:.2f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["fashion"])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 96])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        config = configuration(*json.loads(options.one[0]))
        if options.one[1] == "count":
            print(json.dumps({"planned": count_cost(config, data=False), "tensors": count_cost(config, data=True)}))
        else:
            print(json.dumps({"resident": measure_memory(config)}))
    else:
        table = Table(
            "network", "batches", "checkpointing", "planned MB", "tensors MB", "resident MB", "planned/resident"
        )
        for name in options.names:
            for batch in options.batches:
                for checkpointing in ("none", "norms", "blocks"):
                    table.add_row(*row(name, batch, checkpointing))
        Console(width=120).print(table)

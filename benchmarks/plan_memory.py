"""The memory that `dmdistill plan` foretells, beside what a process takes for two steps, on the CPU.

    python benchmarks/plan_memory.py [fashion cifar10 ...] [--batches 32 96]

The networks are those of `step.py`, with the settings of the bundled one's preset.

Measured twice: the tensors alive, counted while real steps run, and the growth of the largest resident set of a process
(VmHWM) from before its networks are built, after the same steps with one image have loaded all code. The allocator
gives large blocks back at once (MALLOC_MMAP_THRESHOLD_), else what it keeps spare is measured too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch
from resident import answer_of, most_resident, resident
from rich.console import Console
from rich.table import Table
from step_cases import CASES

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.plan.dry_run import rehearsal
from dmdistill.commands.presets import from_preset

MB = 1e6
SIZES = ("planned", "tensors", "resident")


def two_steps(config: DistillConfig) -> None:
    teacher = CASES[config.teacher].teacher().to(torch.device("cpu"))
    with rehearsal(config, teacher, data=True) as job:
        for _ in range(2):
            job.iterate(config.steps - 1)


def measured(config: DistillConfig) -> float:
    """MB by which the resident set grows at most."""
    two_steps(replace(config, batch=1, batch_reg=1))
    before = resident()
    two_steps(config)
    return (most_resident() - before) / MB


def counted(config: DistillConfig, *, data: bool) -> float:
    """MB of tensors at the peak, of those with data or of those without."""
    teacher = CASES[config.teacher].teacher().to(torch.device("cpu"))
    with rehearsal(config, teacher, data=data, ledger=True) as job:
        return sum(job.count(job.course.phases[-1]).memory.values()) / MB


def configuration(name: str, batch: int, checkpointing: str) -> DistillConfig:
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    changes = {"teacher": name, "batch": batch, "batch_reg": batch, "checkpointing": checkpointing}
    return from_preset(DistillConfig, "fashion", **changes, compute=compute)


def row(name: str, batch: int, checkpointing: str) -> list[str]:
    """Of the table: both in processes of their own, for one's memory is not to be the other's."""
    found: dict[str, float] = {}
    for what in ("count", "measure"):
        found |= answer_of(__file__, "--one", json.dumps([name, batch, checkpointing]), what, threads=1)
    sizes = [f"{found[size]:.0f}" for size in SIZES]
    return [name, f"{batch} + {batch}", checkpointing, *sizes, f"{found['planned'] / found['resident']:.2f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["fashion"])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 96])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        config = configuration(*json.loads(asked.one[0]))
        if asked.one[1] == "count":
            print(json.dumps({"planned": counted(config, data=False), "tensors": counted(config, data=True)}))
        else:
            print(json.dumps({"resident": measured(config)}))
    else:
        table = Table(
            "network", "batches", "checkpointing", "planned MB", "tensors MB", "resident MB", "planned/resident"
        )
        for name in asked.names:
            for batch in asked.batches:
                for checkpointing in ("none", "norms", "blocks"):
                    table.add_row(*row(name, batch, checkpointing))
        Console(width=120).print(table)

"""The memory that `dmdistill plan` foretells, beside what a process takes for two steps, on the CPU.

    python benchmarks/plan_memory.py [fashion ...]

Measured twice: the tensors alive, counted while real steps run, and the growth of the largest resident set of a process
(VmHWM) from before its networks are built, after the same steps with one image have loaded all code. The allocator
gives large blocks back at once (MALLOC_MMAP_THRESHOLD_), else what it keeps spare is measured too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from resident import answer_of, most_resident, resident
from rich.console import Console
from rich.table import Table

from dmdistill.app.config import Distill, Machine
from dmdistill.app.rehearsal import rehearsal
from dmdistill.app.settings import from_preset
from dmdistill.teachers.load import load_teacher
from dmdistill.training.device import choose_device

MB = 1e6
BATCHES = (32, 96)


def two_steps(config: Distill) -> None:
    teacher = load_teacher(config.teacher)
    teacher.to(choose_device("cpu"))
    with rehearsal(config, teacher, data=True) as job:
        for _ in range(2):
            job.iterate(config.steps - 1)


def measured(config: Distill) -> float:
    """MB by which the resident set grows at most."""
    two_steps(replace(config, batch=1, batch_reg=1))
    before = resident()
    two_steps(config)
    return (most_resident() - before) / MB


def counted(config: Distill, *, data: bool) -> float:
    """MB of tensors at the peak, of those with data or of those without."""
    teacher = load_teacher(config.teacher)
    teacher.to(choose_device("cpu"))
    with rehearsal(config, teacher, data=data, ledger=True) as job:
        return sum(job.count(job.phases[-1]).memory.values()) / MB


def configuration(preset: str, batch: int, checkpointing: str) -> Distill:
    machine = Machine(device="cpu", precision="fp32", threads=1)
    return from_preset(Distill, preset, batch=batch, batch_reg=batch, checkpointing=checkpointing, machine=machine)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        preset, batch, checkpointing = json.loads(sys.argv[2])
        config = configuration(preset, batch, checkpointing)
        if sys.argv[3] == "count":
            print(json.dumps({"planned": counted(config, data=False), "tensors": counted(config, data=True)}))
        else:
            print(json.dumps({"resident": measured(config)}))
        sys.exit()
    table = Table("preset", "batches", "checkpointing", "planned MB", "tensors MB", "resident MB", "planned/resident")
    for preset in sys.argv[1:] or ["fashion"]:
        for batch in BATCHES:
            for checkpointing in ("none", "norms", "blocks"):
                found: dict[str, float] = {}
                for what in ("count", "measure"):
                    configured = json.dumps([preset, batch, checkpointing])
                    found |= answer_of(__file__, "--one", configured, what, threads=1)
                table.add_row(
                    preset,
                    f"{batch} + {batch}",
                    checkpointing,
                    *(f"{found[name]:.0f}" for name in ("planned", "tensors", "resident")),
                    f"{found['planned'] / found['resident']:.2f}",
                )
    Console(width=120).print(table)

"""How long training waits for a checkpoint: written at once, and by a thread.

    python benchmarks/saving.py

The state is that of a run of EDM's network for CIFAR-10 (55.7 M parameters): generator, fake score, AdamW's moments of
both and one average, on the CPU. Between two saves the networks' time is stood in for by products of matrices, by which
it is seen whether they become slower while the thread writes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dmdistill.training.checkpoints import Checkpoints

PARAMETERS = 55_733_891
COPIES = 7  # two networks, two moments of each, one average
TENSORS = 300
SAVES = 3
PRODUCTS = 60


def state() -> dict[str, object]:
    rows = PARAMETERS // TENSORS
    return {f"copy {i}": [torch.randn(rows) for _ in range(TENSORS)] for i in range(COPIES)}


def work(a: torch.Tensor) -> float:
    """Milliseconds of what stands in for steps."""
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ a
    return 1e3 * (time.perf_counter() - start)


def measure(background: bool) -> tuple[float, float, float]:
    """Medians of milliseconds: that a save takes from training, that the work after it takes, that are left."""
    waits, works = [], []
    held, a = state(), torch.randn(1024, 1024)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints = Checkpoints(Path(folder), keep=2, background=background)
        for step in range(SAVES):
            start = time.perf_counter()
            checkpoints.write(step, held)
            waits.append(1e3 * (time.perf_counter() - start))
            works.append(work(a))
            start = time.perf_counter()
            checkpoints.wait()
            rest = 1e3 * (time.perf_counter() - start)
    return statistics.median(waits), statistics.median(works), rest


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    undisturbed = statistics.median(work(torch.randn(1024, 1024)) for _ in range(SAVES))
    table = Table("", "training waits, ms", f"{PRODUCTS} products after it, ms", "left to write then, ms")
    table.add_row("no save", "0", f"{undisturbed:.0f}", "0")
    for name, background in (("at once", False), ("by a thread", True)):
        table.add_row(name, *(f"{x:.0f}" for x in measure(background)))
    Console(width=120).print(f"{4 * PARAMETERS * COPIES / 1e9:.2f} GB of state, medians of {SAVES}")
    Console(width=120).print(table)

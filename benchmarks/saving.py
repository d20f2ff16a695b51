"""Time that training waits for a checkpoint: written at once, and by a thread.

    python benchmarks/saving.py

The state is that of a run of EDM's network for CIFAR-10 (55.7 M parameters): generator, fake score, AdamW's moments of
both and one average, on the CPU. Between two checkpoints products of matrices stand in for
the networks, to show whether they become slower while the thread writes.
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
    """Make a state of that size."""
    rows = PARAMETERS // TENSORS
    return {f"copy {i}": [torch.randn(rows) for _ in range(TENSORS)] for i in range(COPIES)}


def work(a: torch.Tensor) -> float:
    """Return the milliseconds of the products that stand in for steps."""
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ a
    return 1e3 * (time.perf_counter() - start)


def measure(background: bool) -> tuple[float, float, float]:
    """Return medians in milliseconds: of the wait, of the products after it, and of the writing that is left then."""
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
    baseline = statistics.median(work(torch.randn(1024, 1024)) for _ in range(SAVES))
    table = Table("", "training waits, ms", f"{PRODUCTS} products after it, ms", "left to write then, ms")
    table.add_row("no save", "0", f"{baseline:.0f}", "0")
    for name, background in (("at once", False), ("by a thread", True)):
        table.add_row(name, *(f"{x:.0f}" for x in measure(background)))
    Console(width=120).print(f"{4 * PARAMETERS * COPIES / 1e9:.2f} GB of state, medians of {SAVES}")
    Console(width=120).print(table)

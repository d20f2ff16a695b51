"""One call on a GPU: it ends in time, its work can be gone on with, and it says how fast it was."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dmdistill.training.metrics_log import read_metrics

__all__ = ["compute", "ending_after", "rate", "steps_of"]


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """Ask this process to end, as by SIGTERM, after so many seconds: a training saves and stops, all else goes on."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which training replaces as long as it runs
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def steps_of(run: Path) -> int:
    """The last step in a run's log; 0 where there is none."""
    return max((int(row["step"]) for row in read_metrics(run)), default=0)


def rate(run: Path, *, since: int) -> dict[str, float]:
    """Steps, and steps per second after the first line of the log: what is compiled is compiled before it."""
    rows = [row for row in read_metrics(run) if row["step"] > since]
    if len(rows) < 2:
        return {"steps": len(rows) and rows[-1]["step"] - since}
    seconds = rows[-1]["seconds"] - rows[0]["seconds"]
    return {
        "steps": rows[-1]["step"] - since,
        "steps_per_second": round((rows[-1]["step"] - rows[0]["step"]) / seconds, 4),
    }


def compute() -> dict[str, Any]:
    """Which device, which PyTorch, and the most memory of the device that this process had at once."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": "cpu", "wall_clock": round(time.time())}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        found["peak_reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    return found

"""Work on a GPU that is lent for minutes: it stops in time, can be resumed, and reports its speed."""

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

__all__ = ["compute", "last_step", "rate", "stop_after"]


@contextmanager
def stop_after(seconds: float) -> Iterator[None]:
    """Send this process SIGTERM after so many seconds: training saves and stops, all else ignores it.

    The block then ends early without an error.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # training has a handler of its own
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    except SystemExit as end:
        if end.code != 128 + signal.SIGTERM:
            raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def last_step(run: Path) -> int:
    """Return the last step in a run's log; 0 without a log."""
    return max((int(row["step"]) for row in read_metrics(run)), default=0)


def rate(run: Path, *, since: int) -> dict[str, float]:
    """Return the steps since one, and the steps per second after the first row of the log, when all is compiled."""
    rows = [row for row in read_metrics(run) if row["step"] > since]
    if len(rows) < 2:
        return {"steps": len(rows) and rows[-1]["step"] - since}
    seconds = rows[-1]["seconds"] - rows[0]["seconds"]
    return {
        "steps": rows[-1]["step"] - since,
        "steps_per_second": round((rows[-1]["step"] - rows[0]["step"]) / seconds, 4),
    }


def compute() -> dict[str, Any]:
    """Return the device, the version of PyTorch and the peak memory of this process on the device."""
    found: dict[str, Any] = {"torch": torch.__version__, "device": "cpu", "wall_clock": round(time.time())}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        found["peak_reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    return found

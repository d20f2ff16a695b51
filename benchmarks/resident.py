"""What a process has in memory, now and at most, and functions asked in a process of their own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["answer_of", "most_resident", "resident"]


def resident() -> int:
    """Bytes, after what is free was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def most_resident() -> int:
    """Bytes, at most so far. getrusage would tell of the process that started this one, where that had more."""
    return status("VmHWM")


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def answer_of(*command: str, threads: int) -> Any:
    """The JSON in the last line of what a Python command prints, whose allocator gives large blocks back at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])

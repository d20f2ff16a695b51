"""Resident memory of this process, and functions called in processes of their own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["peak_resident_size", "resident_size", "run_json"]


def resident_size() -> int:
    """Return this process's resident memory in bytes, after giving free memory back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return read_status("VmRSS")


def peak_resident_size() -> int:
    """Return this process's peak resident memory in bytes.

    getrusage would return that of the parent process, if it was larger.
    """
    return read_status("VmHWM")


def read_status(name: str) -> int:
    """Read a size in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def run_json(*command: str, threads: int, spare_memory: bool = False) -> Any:
    """Run a Python command and parse the last line that it prints as JSON.

    Args:
        command: its arguments.
        threads: of PyTorch.
        spare_memory: let the allocator keep what is freed as it does by itself, or as the program asks; otherwise it
            returns large blocks at once.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if not spare_memory:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])

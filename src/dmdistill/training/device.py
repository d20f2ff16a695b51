"""Choice of device and precision."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from dmdistill.distributed.process_group import is_connection_error
from dmdistill.io.errors import first_line

__all__ = ["choose_device", "choose_precision", "is_machine_error", "is_out_of_memory", "reuse_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one, else the CPU. ValueError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("cpu and cuda are supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of a name, "fp32", "bf16" or "auto"; None for fp32.

    "auto" is bf16 if the device is faster in it.
    """
    if name == "auto":
        cuda = device.type == "cuda"
        faster = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else cpu_prefers_bf16()
        name = "bf16" if faster and device.type in ("cuda", "cpu") else "fp32"
    return {"bf16": torch.bfloat16, "fp32": None}[name]


def cpu_prefers_bf16() -> bool:
    """Whether this CPU is faster in bf16 than in fp32: with AMX, or with AVX-512 BF16 if it is not Intel's.

    Intel's cores without AMX have the instruction and convolve at 0.6 of fp32's speed with it
    (docs/experiments/2026-11-cpu-step.md).
    Without either bf16 is emulated.
    """
    return cpu_supports("amx_tile") or (cpu_supports("avx512_bf16") and not is_intel())


def cpu_supports(instructions: str) -> bool:
    """Whether this CPU has an instruction set, as far as PyTorch knows."""
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)())


def is_intel() -> bool:
    """Whether this CPU is Intel's."""
    file = Path("/proc/cpuinfo")
    return "GenuineIntel" in (file.read_text() if file.is_file() else platform.processor())


def reuse_memory(largest: int = 1 << 29) -> None:
    """Let glibc's malloc keep the memory of freed tensors for the next ones; with another C library do nothing.

    By default it returns that of large tensors to Linux, which then clears every page anew, step by step. glibc's own
    variable for that, MALLOC_MMAP_THRESHOLD_, takes precedence: a small one saves memory and costs time.

    Args:
        largest: bytes of a tensor whose memory is kept. Of unused memory at most twice as much is kept, glibc's own
            rule, by which it goes up to 32 MiB.
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_MMAP_THRESHOLD, largest)
        malloc.mallopt(M_TRIM_THRESHOLD, 2 * largest)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU's allocator has no exception class of its own for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def is_machine_error(error: BaseException) -> bool:
    """Whether memory ran out or another process is gone: no fault of what was being read or called."""
    return is_out_of_memory(error) or is_connection_error(error)

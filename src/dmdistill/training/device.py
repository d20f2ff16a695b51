"""Where to compute, and in which precision."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from dmdistill.io.errors import first_line

__all__ = ["choose_device", "choose_precision", "is_out_of_memory"]


def choose_device(name: str) -> torch.device:
    """auto: cuda where there is one, else cpu. ValueError for a device this machine lacks."""
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
    """The dtype networks compute in, None for fp32. auto: bf16 where the hardware is faster in it."""
    if name == "auto":
        cuda = device.type == "cuda"
        faster = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else cpu_prefers_bf16()
        name = "bf16" if faster and device.type in ("cuda", "cpu") else "fp32"
    return {"bf16": torch.bfloat16, "fp32": None}[name]


def cpu_prefers_bf16() -> bool:
    """Whether this CPU is faster in bf16 than in fp32: with AMX, or with AVX-512 BF16 if it is not Intel's.

    Intel's cores without AMX have the instruction and convolve at 0.6 of fp32's speed with it (docs/experiments).
    Without either bf16 is emulated.
    """
    return supports("amx_tile") or (supports("avx512_bf16") and not is_intel())


def supports(instructions: str) -> bool:
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)())


def is_intel() -> bool:
    file = Path("/proc/cpuinfo")
    return "GenuineIntel" in (file.read_text() if file.is_file() else platform.processor())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; the CPU's allocator has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

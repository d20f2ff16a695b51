"""Where to compute, and in which precision."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dmdistill.files import first_line

__all__ = ["choose_device", "choose_precision", "out_of_memory"]


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
        faster = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_likes_bf16()
        name = "bf16" if faster and device.type in ("cuda", "cpu") else "fp32"
    return {"bf16": torch.bfloat16, "fp32": None}[name]


@cache
def cpu_likes_bf16() -> bool:
    """Whether this CPU convolves in bf16 sooner than in fp32, by trying both for some milliseconds.

    Without AVX-512 BF16 it is emulated. With it all depends: AMD's cores and those with AMX gain by it, Intel's without
    AMX take longer.
    """
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return False
    fp32, bf16 = least_seconds(torch.float32, torch.bfloat16)
    return bf16 < fp32


@torch.inference_mode()
def least_seconds(*dtypes: torch.dtype, repeats: int = 25) -> list[float]:
    """Of a convolution such as the networks are made of, in each dtype in turn: other work hinders all alike."""
    x, weight = torch.ones(8, 64, 16, 16), torch.ones(64, 64, 3, 3)
    both = [[one.to(dtype, memory_format=torch.channels_last) for one in (x, weight)] for dtype in dtypes]
    return [min(timings) for timings in zip(*([seconds(*one) for one in both] for _ in range(repeats)), strict=True)]


def seconds(x: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    F.conv2d(x, weight, padding=1)
    return time.perf_counter() - start


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; the CPU's allocator has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

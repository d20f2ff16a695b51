"""Where to compute, and in which precision."""

from __future__ import annotations

import torch

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
    """The dtype networks compute in, None for fp32. auto: bf16 where the hardware multiplies it natively."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
        name = "bf16" if native and device.type in ("cuda", "cpu") else "fp32"
    return {"bf16": torch.bfloat16, "fp32": None}[name]


def cpu_has_bf16() -> bool:
    """AVX-512 BF16 or better: without it bf16 is emulated and slower than fp32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; the CPU's allocator has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

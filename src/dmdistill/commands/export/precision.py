"""The precision of exported weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from dmdistill.models.diffusers_folder import resolve_folder
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function

__all__ = ["cast_network", "choose_dtype"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_dtype(store: str, student: Student) -> torch.dtype:
    """Return the dtype of `--store`; for auto, fp16 where the student or its teacher is stored in fp16, else fp32.

    bf16 is never chosen automatically: its rounding is as large as what a distillation changes.
    """
    if store != "auto":
        return DTYPES[store]
    settings = student.config.get("distilled")
    student_store = settings.get("save_dtype") if isinstance(settings, dict) else None
    teacher = student.config.get("teacher")
    half = student_store == "fp16" or (isinstance(teacher, str) and has_half_weights(teacher))
    return torch.float16 if half else torch.float32


def has_half_weights(teacher: str) -> bool:
    """Tell whether the network of a diffusers teacher, a folder or a hub id, is stored in fp16."""
    if is_python_function(teacher):
        return False
    folder = resolve_folder(teacher)
    return next((dtype == "F16" for part in ("unet", "transformer", ".") for dtype in dtypes(folder / part)), False)


def dtypes(folder: Path) -> Iterator[str]:
    """Yield the dtypes of the floating-point tensors in a folder's safetensors files, by their safetensors names."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = (tensors.get_slice(key).get_dtype() for key in tensors.keys())  # noqa: SIM118
            yield from (name for name in names if "F" in name)


def cast_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network in place. ModelMixin's own `to` would warn."""
    return nn.Module.to(network, dtype)

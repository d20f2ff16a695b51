"""The precision of exported weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dmdistill.commands.export.component_files import component_files
from dmdistill.io.weights import bundled_models
from dmdistill.models.diffusers_folder import resolve_folder
from dmdistill.models.model import Student
from dmdistill.models.python_function import is_python_function

__all__ = ["cast_network", "choose_dtype"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_dtype(save_dtype: str, student: Student, name: str) -> torch.dtype:
    """Return the dtype of `--save-dtype`; for auto, fp16 where the student or its teacher is stored in fp16.

    Else auto is fp32: the rounding of bf16 is as large as what a distillation changes. `name` is the student's, or its
    folder or run.
    """
    if save_dtype != "auto":
        return DTYPES[save_dtype]
    folder, teacher = bundled_models().get(name, Path(name)), student.config.get("teacher")
    folders = [folder, folder / "student"]
    if isinstance(teacher, str) and not is_python_function(teacher):
        source = resolve_folder(teacher)
        folders += [source, source / "unet", source / "transformer"]
    return torch.float16 if any("F16" in stored_dtypes(folder) for folder in folders) else torch.float32


def stored_dtypes(folder: Path) -> set[str]:
    """Return the dtypes of the tensors in a folder's safetensors files, by their names in these files."""
    from safetensors import safe_open

    dtypes = set()
    for file in component_files(folder).values():
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                dtypes |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    return dtypes


def cast_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network in place. ModelMixin's own `to` would warn."""
    return nn.Module.to(network, dtype)

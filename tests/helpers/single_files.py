"""Single files with the original key names, of pipelines of diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from dmdistill.commands.export.pipeline_use import find_pipeline
from dmdistill.commands.export.single_file import checkpoint_tensors
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Student


def write_single_file(folder: Path, file: Path) -> Path:
    """Write a pipeline's weights to a file, and its configs and tokenizers, without weights, to a folder beside it."""
    teacher = load_teacher(str(folder))
    config = {"kind": "student", "name": "same", "teacher": str(folder)}
    student = Student.from_teacher(teacher, teacher.denoiser, config)
    tensors = checkpoint_tensors(student, find_pipeline(student))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    shutil.copytree(folder, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return file

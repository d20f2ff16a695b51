"""Configuration of `dmdistill export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

__all__ = ["ExportConfig"]


@dataclass(frozen=True)
class ExportConfig:
    """Write a student as a folder that diffusers loads without this package."""

    student: Positional[str]
    """The bundled fashion-student, or the folder of a student or of a run."""
    out: Positional[Path]
    """Output folder, which must be new."""
    format: Literal["diffusers", "single-file"] = "diffusers"
    """A folder of diffusers; or one .safetensors file, with its card in the folder, of Stable Diffusion 1, 2 or XL with
    the key names that ComfyUI and others read, kohya's for LoRA weights."""
    save_dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Dtype of the exported weights; auto is fp16 where the student's or its teacher's files are, else fp32."""
    push_to_hub: str | None = None
    """Repository on the Hugging Face hub (owner/name) to upload the folder to; first log in with `hf auth login`."""

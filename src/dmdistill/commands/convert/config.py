"""Configuration of `dmdistill convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

__all__ = ["ConvertConfig"]


@dataclass(frozen=True)
class ConvertConfig:
    """Write a teacher, a checkpoint of EDM say, as a model's folder."""

    model: Positional[str]
    """A checkpoint of EDM (.pkl), a published name, or the folder of a teacher of our own networks."""
    out: Positional[Path]
    """Folder to write, which must be empty or new."""
    store: Literal["fp32", "fp16"] = "fp32"
    """How the weights are stored."""

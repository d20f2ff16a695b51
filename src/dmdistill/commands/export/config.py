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
    """fashion-student, or the folder of a student or run."""
    out: Positional[Path]
    """Folder to make."""
    format: Literal["diffusers"] = "diffusers"
    """What to write."""
    push_to_hub: str | None = None
    """Repository of the hub (owner/name) to upload it to as well; log in first by `hf auth login`."""

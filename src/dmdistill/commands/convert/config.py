"""Configuration of `dmdistill convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

__all__ = ["ConvertConfig"]


@dataclass(frozen=True)
class ConvertConfig:
    """Write a teacher, for example an EDM checkpoint, as a model folder."""

    model: Positional[str]
    """An EDM checkpoint (.pkl), the name of a published one, or the folder of a teacher with a network of ours."""
    out: Positional[Path]
    """Output folder, which must be new."""
    save_dtype: Literal["fp32", "fp16"] = "fp32"
    """Precision of the stored weights."""

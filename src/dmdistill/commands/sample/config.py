"""Configuration of `dmdistill sample`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions

__all__ = ["SampleConfig"]


@dataclass(frozen=True)
class SampleConfig:
    """Draw images from a teacher or a student."""

    model: Positional[str]
    """A model's name (fashion, fashion-student, edm-cifar10-32x32-cond-vp ...), its folder or run, or a .pkl of EDM."""
    out: Path = Path("samples.png")
    """Picture to write."""
    count: int = 64
    """Images."""
    columns: int = 8
    """Images per row of the picture."""
    labels: tuple[int, ...] = ()
    """Classes to draw, repeated as needed; all in turn where none are given."""
    prompt: tuple[str, ...] = ()
    """What a text-to-image model is told: one prompt or more, repeated as needed."""
    prompts: str | None = None
    """Their source: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    seed: int = 0
    """Seed of the noise."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

"""Configuration of `dmdistill demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions

__all__ = ["DemoConfig"]


@dataclass(frozen=True)
class DemoConfig:
    """Distill the bundled Fashion-MNIST teacher in minutes, and draw the student beside its teacher."""

    out: Path = Path("runs/demo")
    """Run folder to make, or to resume."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)

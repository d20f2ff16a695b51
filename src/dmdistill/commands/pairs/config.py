"""Configuration of `dmdistill pairs`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions, SolverOptions

__all__ = ["PairsConfig"]


@dataclass(frozen=True)
class PairsConfig:
    """Make noise-image pairs by the teacher's deterministic ODE solver (section 3.3 of the paper)."""

    teacher: str = "fashion"
    """A bundled or published name, a folder, a .pkl of EDM, a hub id of diffusers, or module:function."""
    prompts: str | None = None
    """What a text-to-image teacher is told: a .txt of one prompt a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    out: Path = Path("pairs/fashion")
    """Folder to write, or to go on with."""
    preset: str = ""
    """Settings to start from; the other flags change them."""
    count: int = 10000
    """Pairs to make."""
    shard_size: int = 2000
    """Pairs per file."""
    batch: int = 500
    """Pairs made at once."""
    compile: bool = False
    """Compile the network by torch.compile: a minute at first, then faster on a GPU."""
    seed: int = 0
    """Seed of noise and labels."""
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    """The teacher's ODE solver."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

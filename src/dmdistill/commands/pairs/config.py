"""Configuration of `dmdistill pairs`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from dmdistill.commands.options import ComputeOptions, ImageSizeOptions, SolverOptions, require_at_least

__all__ = ["PairsConfig"]


@dataclass(frozen=True)
class PairsConfig:
    """Make noise-image pairs by the teacher's deterministic ODE solver (section 3.3 of the paper)."""

    teacher: str = "fashion"
    """Teacher: a bundled or published name, a folder, a .pkl of EDM, a .safetensors or hub id, or module:function."""
    prompts: str | None = None
    """Prompts of a text-to-image teacher: a .txt of one a line, .csv, .parquet, or hf:OWNER/NAME[:COLUMN]."""
    out: Path = Path("pairs/fashion")
    """Folder to write; a half-made set in it is finished."""
    preset: str = ""
    """Preset to start from, or a .toml file of your own; the other flags change it."""
    pair_count: int = 10000
    """Pairs to make."""
    shard_size: int = 2000
    """Pairs per file."""
    pair_batch: int = 500
    """Pairs made at once."""
    compile: bool = False
    """Compile the network by torch.compile: a minute at first, then faster on a GPU."""
    seed: int = 0
    """Seed of noise and labels."""
    image_size: Annotated[ImageSizeOptions, OmitArgPrefixes] = field(default_factory=ImageSizeOptions)
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        require_at_least(self, 1, "pair_count", "shard_size", "pair_batch")

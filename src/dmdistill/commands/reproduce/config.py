"""Configuration of `dmdistill reproduce`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions

__all__ = ["ReproduceConfig"]


@dataclass(frozen=True)
class ReproduceConfig:
    """Repeat an experiment of the paper at small size: a picture and a table, with error bars over seeds."""

    what: Positional[Literal["fig3", "fig4", "ablation", "weighting"]]
    """fig3: what each loss is for, on two modes; fig4: why to diffuse; ablation: table 2; weighting: table 3."""
    out: Path = Path("runs/reproduce")
    """Folder for the picture and the table."""
    seeds: int = 5
    """Repetitions with other random draws, over which the error bars are taken."""
    steps: int | None = None
    """Updates of each training; the experiment's own where none are given."""
    guidance: float | None = None
    """Of ablation and weighting: scale of classifier-free guidance; 1 is none, and usual."""
    start: str | None = None
    """Of ablation and weighting: a student that all rows begin as; the teacher itself where none is given."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

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
    """Repeat an experiment of the DMD paper at a small size, with error bars over random seeds."""

    experiment: Positional[Literal["fig3", "fig4", "ablation", "weighting"]]
    """fig3: what each loss does, on two modes; fig4: why densities are diffused; ablation: the paper's table 2;
    weighting: its table 3."""
    out: Path = Path("runs/reproduce")
    """Output folder for the plot (PNG) and the table (JSON)."""
    seeds: int = 5
    """Number of random seeds, over which the error bars are computed."""
    steps: int | None = None
    """Generator updates of each training run. Default: the experiment's own number. fig4 trains nothing."""
    guidance: float | None = None
    """Classifier-free guidance scale of ablation and weighting; 1 disables guidance, and is the default."""
    start: str | None = None
    """Student that every run of ablation and weighting starts from. Default: the teacher's weights."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

"""Configuration of `dmdistill plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmdistill.commands.distill.config import DistillConfig

__all__ = ["PlanConfig"]


@dataclass(frozen=True)
class PlanConfig(DistillConfig):
    """Say what a distillation takes before it is begun: memory, operations, hours. All flags of `distill` apply."""

    processes: int = 1
    """Processes, one per device, among which batches and drawing are divided; --strategy says what each holds."""
    peak_tflops: float | None = None
    """What a device could compute at best, 1e12 operations per second; without it a few steps are timed here."""
    utilisation: float = 0.3
    """Share of --peak-tflops that is reached: measure it, as it differs between networks and devices."""
    json: Path | None = None
    """File for the figures."""

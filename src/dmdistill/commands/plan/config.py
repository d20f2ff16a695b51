"""Configuration of `dmdistill plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import require, require_at_least, require_positive

__all__ = ["PlanConfig"]


@dataclass(frozen=True)
class PlanConfig(DistillConfig):
    """Estimate what a distillation takes before it starts: memory, FLOPs, hours. All flags of `distill` apply."""

    processes: int = 1
    """Processes, one per device, that share batches and sampling; --strategy says what each of them holds."""
    peak_tflops: float | None = None
    """Peak speed of a device, in TFLOP/s. Without it a few steps are timed on this machine."""
    utilization: float = 0.3
    """Share of --peak-tflops that is reached: measure it, it differs between networks and devices."""
    json: Path | None = None
    """File for the numbers."""

    def check(self) -> None:
        """Raise a ValueError for a value that an option cannot have."""
        super().check()
        require_at_least(self, 1, "processes")
        require_positive(self, "peak_tflops")
        require(self, "a share above 0 and at most 1", lambda share: 0 < share <= 1, "utilization")

"""Distributions of the times at which a loss diffuses images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmdistill.core.schedules import NoiseSchedule

__all__ = ["ALL_TIMES", "EDM_TIMES", "MATCHING_TIMES", "SID_TIMES", "LogNormalTimes", "Times", "UniformTimes"]

Times = Callable[[NoiseSchedule, int, torch.Generator], Tensor]
"""(schedule, n, rng) -> n times, fp32, on the device of rng."""


@dataclass(frozen=True)
class UniformTimes:
    """Times uniform over the schedule's bins, between two fractions of the range: those of DMD (section 3.2)."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, schedule: NoiseSchedule, n: int, rng: torch.Generator) -> Tensor:
        """Draw n times. ValueError for fractions that are no range."""
        return schedule.sample_t(n, self.low, self.high, rng=rng)


@dataclass(frozen=True)
class LogNormalTimes:
    """Times at which ln(sigma/alpha) is normal, as in EDM's training (Karras et al. 2022); on a flow, logit-normal.

    Attributes:
        mean, std: of ln(sigma/alpha).
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, schedule: NoiseSchedule, n: int, rng: torch.Generator) -> Tensor:
        """Draw n times."""
        normal = torch.randn(n, generator=rng, device=rng.device)
        return schedule.time_at_ratio((self.mean + self.std * normal).exp())


ALL_TIMES = UniformTimes()
MATCHING_TIMES = UniformTimes(0.02, 0.98)
"""Of distribution matching in DMD and DMD2."""
SID_TIMES, EDM_TIMES = UniformTimes(0.0, 0.8), LogNormalTimes()
"""Of the generator's loss and of the fake score's in SiD (Zhou et al. 2024)."""

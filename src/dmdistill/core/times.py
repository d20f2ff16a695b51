"""Distributions of the times at which a loss diffuses images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dmdistill.core.schedules import Flow, NoiseSchedule, shift_times

__all__ = ["ALL_TIMES", "EDM_TIMES", "MATCHING_TIMES", "SID_TIMES", "LogNormalTimes", "Times", "UniformTimes"]

Times = Callable[[NoiseSchedule, int, torch.Generator], Tensor]
"""(schedule, n, rng) -> n times, fp32, on the device of rng."""


@dataclass(frozen=True)
class UniformTimes:
    """Times uniform over the schedule's bins, between two fractions of the range: those of DMD (section 3.2).

    Attributes:
        low, high: the fractions.
        shift: of a flow's times towards noise after they are drawn, as in `shift_times`; 1 for none.
    """

    low: float = 0.0
    high: float = 1.0
    shift: float = 1.0

    def __call__(self, schedule: NoiseSchedule, n: int, rng: torch.Generator) -> Tensor:
        """Draw n times. ValueError for fractions that are no range, and for a shift on a schedule that is no flow."""
        t = schedule.sample_t(n, self.low, self.high, rng=rng)
        if self.shift == 1:
            return t
        if not isinstance(schedule, Flow):
            raise ValueError(f"times of {type(schedule).__name__} with shift {self.shift:g}: only a flow's are shifted")
        return shift_times(t, self.shift)

    def below(self, schedule: NoiseSchedule, t: float) -> UniformTimes:
        """Return these times up to t, with the same shift; all times up to t if the lower end is not below it."""
        if self.shift != 1:
            t = shift_times(torch.tensor(t, dtype=torch.float64), 1 / self.shift).item()
        high = min(self.high, schedule.fraction(t))
        return replace(self, low=self.low if self.low < high else 0.0, high=high)


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

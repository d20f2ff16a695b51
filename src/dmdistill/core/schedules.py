"""Noise schedules: x_t = alpha(t) x + sigma(t) eps, eps ~ N(0, I) (Eq. 3).

Every schedule keeps (alpha, sigma) and never sigma alone: a flow has alpha = 0 at its last time, which is exactly
where a one-step generator is evaluated.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["EDM", "VP", "Flow", "NoiseSchedule", "expand", "shift_times"]

ROUNDING = 1e-3  # of a bin: times are stored in fp32


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape t (B) to B 1 ... 1, so that it broadcasts over x (B ...), as every time and weight does."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"values of shape {tuple(t.shape)}, expected ({x.shape[0]},): one per sample")
    return t.reshape(-1, *[1] * (x.ndim - 1))


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Shift times of a flow, within [0, 1], towards noise: shift t / (1 + (shift - 1) t) (Esser et al. 2024, Eq. 23).

    The inverse is that of 1 / shift.
    """
    return shift * t / (1 + (shift - 1) * t)


def append_clean(times: Tensor, clean: float) -> Tensor:
    """Append the time of the clean image to a grid."""
    return torch.cat([times, times.new_tensor([clean])])


class NoiseSchedule:
    """Noise schedule: how much of the image and of the noise x_t has at time t.

    Times are tensors of shape (B,), and so are alpha and sigma.

    Attributes:
        t_max: time of pure noise, where solvers start and a one-step generator is evaluated.
        prior_std: x at `t_max` is prior_std * z, z ~ N(0, I).
        bins: number of discrete times that `sample_t` draws from.
        time_meaning: what a time is, in words.
    """

    time_meaning: str
    t_max: float
    prior_std: float = 1.0
    bins: int = 1000

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes: copies of a network share it

    def alpha(self, t: Tensor) -> Tensor:
        """Return the coefficient of the image at time t."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Return the coefficient of the noise at time t."""
        raise NotImplementedError

    def time(self, index: Tensor) -> Tensor:
        """Return the time of bin `index` (integers in [0, bins)); it rises with the noise."""
        raise NotImplementedError

    def time_at_ratio(self, ratio: Tensor) -> Tensor:
        """Return the time at which sigma/alpha is `ratio` (B), the nearest one of a discrete schedule. fp32."""
        raise NotImplementedError

    def fraction(self, t: float) -> float:
        """Return the fraction of the bins whose time is at most t."""
        raise NotImplementedError

    @property
    def time_range(self) -> tuple[float, float]:
        """The times of the first and of the last bin."""
        first, last = self.time(torch.tensor([0, self.bins - 1])).tolist()
        return first, last

    def noise_std(self, t: float) -> float:
        """Return the scale of pure noise, z ~ N(0, I), as the input of a generator that is evaluated at time t."""
        return self.prior_std

    def student_times(self, steps: int) -> tuple[float, ...]:
        """Return the times of a few-step generator: `t_max`, then the ends of equal parts of the bins (DMD2)."""
        if not 1 <= steps <= self.bins:
            raise ValueError(
                f"{steps} steps of a student, expected 1 ... {self.bins}: the schedule has that many times"
            )
        index = [round(self.bins * (steps - step) / steps) - 1 for step in range(steps)]
        return (self.t_max, *self.time(torch.tensor(index[1:], dtype=torch.int64)).tolist())

    def solver_times(self, steps: int) -> Tensor:
        """Return a solver's grid: `steps` times from `t_max` to the least noise, then the clean image, sigma = 0.

        The last step leaves out detail below the noise that it starts from: so it starts from the least there is. With
        one step the grid is `t_max` and the clean image. fp64, shape (steps + 1,).
        """
        raise NotImplementedError

    def diffuse(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t = alpha(t) x + sigma(t) eps (Eq. 3). x, eps: B ...; t: B."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * eps

    def sample_t(self, n: int, low: float = 0.0, high: float = 1.0, *, rng: torch.Generator) -> Tensor:
        """Draw n times uniformly from the bins between two fractions of the range. fp32, on the device of `rng`."""
        if not 0 <= low < high <= 1:
            raise ValueError(f"time range is [{low}, {high}], expected 0 <= low < high <= 1")
        first, end = min(round(low * self.bins), self.bins - 1), min(round(high * self.bins) + 1, self.bins)
        return self.time(torch.randint(first, end, (n,), generator=rng, device=rng.device))


class EDM(NoiseSchedule):
    """Variance exploding, t = sigma, in Karras' bins: alpha = 1, sigma = t (Karras et al. 2022, Eq. 5).

    sigma of bin i is (sigma_min^(1/rho) + i/(bins-1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Args:
        sigma_min: least standard deviation of the noise, above 0.
        sigma_max: largest one, above that: of the generator's input.
        rho: curvature of the bins, above 0.
        bins: number of times, at least 2.
    """

    time_meaning = "a standard deviation of the noise, sigma"

    def __init__(
        self, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, bins: int = 1000
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min = {sigma_min}, sigma_max = {sigma_max}, expected 0 < sigma_min < sigma_max")
        if bins < 2 or rho <= 0:
            raise ValueError(f"bins = {bins}, rho = {rho}, expected bins >= 2 and rho > 0")
        self.sigma_min, self.sigma_max, self.rho, self.bins = sigma_min, sigma_max, rho, bins
        self.t_max = self.prior_std = sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, index: Tensor) -> Tensor:
        return self.karras(index.double() / (self.bins - 1)).float()

    def time_at_ratio(self, ratio: Tensor) -> Tensor:
        return ratio.float()

    def fraction(self, t: float) -> float:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (math.floor((t ** (1 / self.rho) - low) / (high - low) * (self.bins - 1) + ROUNDING) + 1) / self.bins

    def noise_std(self, t: float) -> float:
        return t

    def solver_times(self, steps: int) -> Tensor:
        return append_clean(self.karras(torch.linspace(1, 0, steps, dtype=torch.float64)), 0.0)

    def karras(self, u: Tensor) -> Tensor:
        """sigma at the fraction u in [0, 1] of the schedule."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + u * (high - low)) ** self.rho


class VP(NoiseSchedule):
    """Variance preserving in discrete steps: alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t), t in {0 ... T-1}.

    Args:
        alphas_cumprod: abar, shape (T,), falling, in [0, 1). The time -1 is the clean image, abar = 1.
    """

    time_meaning = "a timestep"

    def __init__(self, alphas_cumprod: Tensor) -> None:
        abar = alphas_cumprod.double().cpu()
        if abar.ndim != 1 or len(abar) == 0 or not ((abar.diff() < 0).all() and abar[0] < 1 and abar[-1] >= 0):
            raise ValueError(
                f"alphas_cumprod has shape {tuple(abar.shape)}, expected one sequence falling within [0, 1)"
            )
        self.alphas_cumprod = torch.cat([torch.ones(1).double(), abar])
        self.bins = len(alphas_cumprod)
        self.t_max = self.bins - 1

    @classmethod
    def linear_betas(cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> VP:
        """Build the schedule of DDPM (Ho et al. 2020): `steps` betas from `first` to `last`, both in (0, 1)."""
        return cls((1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0))

    def abar(self, t: Tensor) -> Tensor:
        local = self.alphas_cumprod.to(t.device)
        if type(local) is Tensor:  # copied once, where the times are; a tensor without data is not
            self.alphas_cumprod = local
        return local[t.round().long() + 1]

    def alpha(self, t: Tensor) -> Tensor:
        return self.abar(t).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.abar(t)).sqrt().to(t.dtype)

    def time(self, index: Tensor) -> Tensor:
        return index.float()

    def fraction(self, t: float) -> float:
        return (math.floor(t) + 1) / self.bins

    def time_at_ratio(self, ratio: Tensor) -> Tensor:
        abar = self.alphas_cumprod[1:].to(ratio.device)
        midpoints = ((1 / abar - 1).log()[1:] + (1 / abar - 1).log()[:-1]) / 4  # of ln(sigma/alpha) of neighbours
        return torch.bucketize(ratio.double().log(), midpoints).float()

    def solver_times(self, steps: int) -> Tensor:
        if not 1 <= steps <= self.bins:
            raise ValueError(f"{steps} solver steps, expected 1 ... {self.bins}: the path has that many times")
        times = (torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (self.t_max / max(steps - 1, 1))).round()
        times[0] = self.t_max
        return append_clean(times, -1.0)


class Flow(NoiseSchedule):
    """Rectified flow: alpha = 1 - t, sigma = t, t in [0, 1] (Liu et al. 2022).

    Args:
        shift: of the solver's and the student's times towards noise, as in `shift_times`; above 0, 1 for none.
        bins: number of times, at least 1.
    """

    time_meaning = "the share of noise"
    t_max = 1.0

    def __init__(self, *, shift: float = 1.0, bins: int = 1000) -> None:
        if shift <= 0 or bins < 1:
            raise ValueError(f"shift = {shift}, bins = {bins}, expected shift > 0 and bins >= 1")
        self.shift, self.bins = shift, bins

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, index: Tensor) -> Tensor:
        return ((index.double() + 1) / self.bins).float()

    def fraction(self, t: float) -> float:
        return math.floor(t * self.bins + ROUNDING) / self.bins

    def time_at_ratio(self, ratio: Tensor) -> Tensor:
        return (ratio / (1 + ratio)).float()

    def student_times(self, steps: int) -> tuple[float, ...]:
        return tuple(shift_times(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1], self.shift).tolist())

    def solver_times(self, steps: int) -> Tensor:
        even = torch.linspace(1, 1 / self.bins, steps, dtype=torch.float64)
        return append_clean(shift_times(even, self.shift), 0.0)

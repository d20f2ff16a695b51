"""A teacher with a hard edge that is known exactly: the uniform density on a box, and its scores.

A mixture of Gaussians is positive everywhere. Where one wants two densities with no point in common, as in Fig. 4, it
takes a box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.schedules import NoiseSchedule, expand

__all__ = ["UniformBox"]


class UniformBox(Denoiser):
    """mu(x_t, t) of x ~ U[low, high]^D, in closed form: the mean of a normal density cut off at the edges.

    With a = (alpha low - x_t)/sigma and b = (alpha high - x_t)/sigma, each coordinate's diffused density is
    (Phi(b) - Phi(a)) / (alpha (high - low)), and alpha mu = x_t - sigma (phi(b) - phi(a)) / (Phi(b) - Phi(a)).

    Args:
        low, high: the edges, the same in every coordinate.
        path: of the teacher; times with sigma = 0 or alpha = 0 have no answer here.
    """

    def __init__(self, low: float, high: float, schedule: NoiseSchedule) -> None:
        super().__init__(nn.Identity(), schedule)
        if not low < high:
            raise ValueError(f"a box from {low} to {high}, expected low < high")
        self.low, self.high = low, high

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """mu of x_t (B ...) at times t (B): same shape, same precision; fp64 inside."""
        near, far, side, alpha, sigma = self.edges(x_t, t)
        slope = (
            (-(near**2) / 2 - log_mass(near, far)).exp() * -((near**2 - far**2) / 2).expm1() / math.sqrt(2 * math.pi)
        )
        return ((x_t.double() - sigma * side * slope) / alpha).to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Log density of x_t (B ...) at times t (B), differentiable: fp64, shape (B,)."""
        near, far, _, alpha, _ = self.edges(x_t, t)
        return (log_mass(near, far) - (alpha * (self.high - self.low)).log()).flatten(1).sum(1)

    def edges(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """b and a, mirrored so that both lie as low as they can, far <= near; 1 or -1 where mirrored; alpha, sigma.

        Far out Phi of either edge is 1 to all digits that fp64 has; in the mirror it is a small number and exact.
        """
        x = x_t.double()
        alpha, sigma = (expand(c, x) for c in (self.schedule.alpha(t.double()), self.schedule.sigma(t.double())))
        a, b = (alpha * self.low - x) / sigma, (alpha * self.high - x) / sigma
        mirrored = a + b > 0
        return torch.where(mirrored, -a, b), torch.where(mirrored, -b, a), 1.0 - 2.0 * mirrored, alpha, sigma

    def weight(self, t: Tensor) -> Tensor:
        """1: an exact mean is the minimum under every weight."""
        return torch.ones_like(t)

    def sample(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Points of the box, fp64, on rng's device."""
        uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
        return self.low + (self.high - self.low) * uniform


def log_mass(near: Tensor, far: Tensor) -> Tensor:
    """log(Phi(near) - Phi(far)) for far < near."""
    high, low = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    return high + (-(low - high).expm1()).log()

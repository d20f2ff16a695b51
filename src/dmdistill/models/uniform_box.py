"""The exact denoiser of a uniform distribution on a box.

A Gaussian mixture is positive everywhere; two boxes can be two distributions without a common point, as in Fig. 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.schedules import NoiseSchedule, expand

__all__ = ["UniformBox"]


class UniformBox(Denoiser):
    """The posterior mean mu(x_t, t) of x ~ U[low, high]^D, in closed form: that of a truncated normal distribution.

    With a = (alpha low - x_t)/sigma and b = (alpha high - x_t)/sigma, each coordinate's diffused density is
    (Phi(b) - Phi(a)) / (alpha (high - low)), and alpha mu = x_t - sigma (phi(b) - phi(a)) / (Phi(b) - Phi(a)).

    Args:
        low: the lower edge, in every coordinate.
        high: the upper edge.
        schedule: of the noise; mu is defined where sigma > 0 and alpha > 0.
    """

    def __init__(self, low: float, high: float, schedule: NoiseSchedule) -> None:
        super().__init__(nn.Identity(), schedule)
        if not low < high:
            raise ValueError(f"a box from {low} to {high}, expected low < high")
        self.low, self.high = low, high

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return mu of x_t (B ...) at times t (B), in the dtype of x_t; computed in fp64."""
        near, far, side, alpha, sigma = self.edges(x_t, t)
        slope = (
            (-(near**2) / 2 - log_mass(near, far)).exp() * -((near**2 - far**2) / 2).expm1() / math.sqrt(2 * math.pi)
        )
        return ((x_t.double() - sigma * side * slope) / alpha).to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the log density of x_t (B ...) at times t (B), differentiable: fp64, shape (B,)."""
        near, far, _, alpha, _ = self.edges(x_t, t)
        return (log_mass(near, far) - (alpha * (self.high - self.low)).log()).flatten(1).sum(1)

    def edges(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return b and a, mirrored to the lower tail, far <= near; 1, or -1 where mirrored; alpha, sigma.

        In the upper tail Phi of both edges is 1 to all digits of fp64; in the lower it is a small number, and exact.
        """
        x = x_t.double()
        alpha, sigma = (expand(c, x) for c in (self.schedule.alpha(t.double()), self.schedule.sigma(t.double())))
        a, b = (alpha * self.low - x) / sigma, (alpha * self.high - x) / sigma
        mirrored = a + b > 0
        return torch.where(mirrored, -a, b), torch.where(mirrored, -b, a), 1.0 - 2.0 * mirrored, alpha, sigma

    def weight(self, t: Tensor) -> Tensor:
        """Return 1: the exact mean is the minimum under every weight."""
        return torch.ones_like(t)

    def sample(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Sample points of the box, fp64, on rng's device."""
        uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
        return self.low + (self.high - self.low) * uniform


def log_mass(near: Tensor, far: Tensor) -> Tensor:
    """Return log(Phi(near) - Phi(far)) for far < near."""
    high, low = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    return high + (-(low - high).expm1()).log()

"""Fig. 4: why densities are diffused before they are matched.

Real and fake are uniform on two intervals with no point in common. There the KL divergence (Eq. 1) is infinite and its
gradient (Eq. 2) is undefined: p_real is zero at every sample. Diffused (Eq. 3), both are positive everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmdistill.core.losses import distribution_matching_loss
from dmdistill.core.schedules import EDM
from dmdistill.models.uniform_box import UniformBox

__all__ = ["FAKE", "REAL", "SIGMAS", "densities", "divergence", "gradient", "overlap", "sampled"]

REAL, FAKE = UniformBox(0.2, 0.8, EDM()), UniformBox(-0.8, -0.2, EDM())
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 80.0)
SAMPLES = 4096


def densities(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """A grid of points that holds all of both densities but 1e-15, and log p_real and log p_fake on it, diffused."""
    reach = REAL.high + 8 * sigma
    x = torch.linspace(-reach, reach, 20001, dtype=torch.float64)
    t = times(sigma, len(x))
    return x, REAL.log_prob(x[:, None], t), FAKE.log_prob(x[:, None], t)


def overlap(sigma: float) -> float:
    """The overlap coefficient, the integral of min(p_real, p_fake): 0 for nothing in common, 1 for the same."""
    x, real, fake = densities(sigma)
    return torch.trapezoid(torch.minimum(real, fake).exp(), x).item()


def divergence(sigma: float) -> float:
    """Eq. 1 of the diffused densities."""
    x, real, fake = densities(sigma)
    return torch.trapezoid(fake.exp() * (fake - real), x).item()


def gradient(sigma: float) -> float:
    """Eq. 2 of the diffused densities: the mean of |s_fake - s_real| over the fake one."""
    x, _, fake = densities(sigma)
    return torch.trapezoid(fake.exp() * score_difference(x[:, None], sigma)[:, 0].abs(), x).item()


def score_difference(x_t: Tensor, sigma: float) -> Tensor:
    """s_fake - s_real by Eq. 4 and 5: (mu_fake - mu_real) / sigma^2. x_t: B 1."""
    t = times(sigma, len(x_t))
    return (FAKE(x_t, t) - REAL(x_t, t)) / sigma**2


def sampled(sigma: float, rng: torch.Generator) -> dict[str, float]:
    """The gradient as training meets it, in samples of the fake density: its mean size without and with Eq. 8."""
    x = FAKE.sample((SAMPLES, 1), rng).requires_grad_()
    eps, t = torch.randn(x.shape, generator=rng, dtype=x.dtype), times(sigma, len(x))
    (weighted,) = torch.autograd.grad(distribution_matching_loss(x, REAL, FAKE, t, eps) * x.numel(), x)
    plain = score_difference(REAL.schedule.diffuse(x.detach(), eps, t), sigma)
    return {"sampled": plain.abs().mean().item(), "with Eq. 8": weighted.abs().mean().item()}


def times(sigma: float, count: int) -> Tensor:
    return torch.full((count,), sigma, dtype=torch.float64)

"""Fig. 4: why densities are diffused before they are matched.

Real and fake are uniform on two disjoint intervals. There the KL divergence (Eq. 1) is infinite and its gradient
(Eq. 2) is undefined, since p_real is zero at every sample. Diffused (Eq. 3), both are positive everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmdistill.core.losses import distribution_matching_loss
from dmdistill.core.schedules import EDM
from dmdistill.models.uniform_box import UniformBox

REAL, FAKE = UniformBox(0.2, 0.8, EDM()), UniformBox(-0.8, -0.2, EDM())
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 80.0)
SAMPLES = 4096


def diffused_densities(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return a grid of points that covers both densities to 1e-15, and log p_real and log p_fake on it."""
    reach = REAL.high + 8 * sigma
    x = torch.linspace(-reach, reach, 20001, dtype=torch.float64)
    t = constant_time(sigma, len(x))
    return x, REAL.log_prob(x[:, None], t), FAKE.log_prob(x[:, None], t)


def overlap(sigma: float) -> float:
    """Integrate min(p_real, p_fake): 0 for disjoint densities, 1 for equal ones."""
    x, real, fake = diffused_densities(sigma)
    return torch.trapezoid(torch.minimum(real, fake).exp(), x).item()


def kl_divergence(sigma: float) -> float:
    """Integrate Eq. 1 for the diffused densities."""
    x, real, fake = diffused_densities(sigma)
    return torch.trapezoid(fake.exp() * (fake - real), x).item()


def mean_gradient(sigma: float) -> float:
    """Integrate Eq. 2 for the diffused densities: the mean of |s_fake - s_real| under p_fake."""
    x, _, fake = diffused_densities(sigma)
    return torch.trapezoid(fake.exp() * score_difference(x[:, None], sigma)[:, 0].abs(), x).item()


def score_difference(x_t: Tensor, sigma: float) -> Tensor:
    """Compute s_fake - s_real = (mu_fake - mu_real) / sigma^2 (Eq. 4 and 5) at x_t, B 1."""
    t = constant_time(sigma, len(x_t))
    return (FAKE(x_t, t) - REAL(x_t, t)) / sigma**2


def monte_carlo_gradient(sigma: float, rng: torch.Generator) -> dict[str, float]:
    """Estimate the mean gradient from samples of p_fake, as in training: without and with the weight of Eq. 8."""
    x = FAKE.sample((SAMPLES, 1), rng).requires_grad_()
    eps, t = torch.randn(x.shape, generator=rng, dtype=x.dtype), constant_time(sigma, len(x))
    (weighted,) = torch.autograd.grad(distribution_matching_loss(x, REAL, FAKE, t, eps) * x.numel(), x)
    plain = score_difference(REAL.schedule.diffuse(x.detach(), eps, t), sigma)
    return {"sampled": plain.abs().mean().item(), "with Eq. 8": weighted.abs().mean().item()}


def constant_time(sigma: float, count: int) -> Tensor:
    """Return the time of sigma, which EDM's schedule equates with it, `count` times."""
    return torch.full((count,), sigma, dtype=torch.float64)

"""The exact denoiser of a Gaussian mixture, for any noise schedule.

Solvers, parameterisations and full distillations can be checked against it to the last digit. EDM2 (Karras et al. 2024)
and Fig. 3 of Yin et al. (2024) use such mixtures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.schedules import EDM, NoiseSchedule, expand

__all__ = ["GaussianMixture", "ring", "two_modes"]


class GaussianMixture(Denoiser):
    """The posterior mean mu(x_t, t, c) of a Gaussian mixture x ~ sum_k w_k N(m_k, s_k^2 I), in closed form.

    Diffused, component k is N(alpha m_k, S_k^2 I) with S_k^2 = alpha^2 s_k^2 + sigma^2; its responsibility r_k for x_t
    is a softmax, and mu = sum_k r_k (m_k + alpha s_k^2/S_k^2 (x_t - alpha m_k)). Nothing is divided by alpha, so that
    alpha = 0 gives the mean of the mixture.

    Args:
        means: m_k, shape (K, D), or (K, C, H, W) for images.
        schedule: of the noise.
        stds: s_k > 0, one for all or shape (K,).
        weights: w_k > 0, shape (K,), of any sum; None for equal ones.
        classes: the class of each component, integers, shape (K,), with every class of 0 ... max; None for a mixture
            without conditions. A condition has `one_hot`, shape (B, classes), where a row of zeros means no class.
    """

    def __init__(
        self,
        means: Tensor,
        schedule: NoiseSchedule,
        *,
        stds: Tensor | float = 0.1,
        weights: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> None:
        super().__init__(nn.Identity(), schedule)
        count = len(means)
        stds = torch.as_tensor(stds, dtype=torch.float64).expand(count)
        weights = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
        if weights.shape != (count,) or not (weights > 0).all() or not (stds > 0).all():
            raise ValueError(
                f"stds {stds.tolist()}, weights {weights.tolist()}: expected {count} positive ones of each"
            )
        if classes is not None and (
            classes.shape != (count,) or classes.unique().tolist() != list(range(int(classes.max()) + 1))
        ):
            raise ValueError(f"classes are {classes.tolist()}, expected {count}, with every class of 0 ... max")
        self.means: Tensor
        self.stds: Tensor
        self.weights: Tensor
        self.classes: Tensor | None
        self.register_buffer("means", means.double())
        self.register_buffer("stds", stds.clone())
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("classes", classes)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return mu of x_t (B D or B C H W) at times t (B), in the dtype of x_t; computed in fp64."""
        logs, alpha, variance = self.joint(x_t, t, cond)
        responsibility = logs.softmax(1)
        keep = alpha * self.stds**2 / variance
        mean = (responsibility * (1 - alpha * keep)) @ self.means.flatten(1)
        mu = mean + (responsibility * keep).sum(1, True) * x_t.double().flatten(1)
        return mu.reshape(x_t.shape).to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the log density of x_t (B ...) at times t (B), differentiable: fp64, shape (B,)."""
        logs, _, _ = self.joint(x_t, t, cond)
        return logs.logsumexp(1) - self.prior(cond, len(x_t)).logsumexp(1)

    def joint(self, x_t: Tensor, t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return log w_k N(x_t; alpha m_k, S_k^2), alpha and S_k^2: (B, K), (B, 1), (B, K).

        In fp64, as at sigma 80 the distances to all means agree in all digits of fp32.
        """
        x, means = x_t.double().flatten(1), self.means.flatten(1)
        alpha, sigma = (expand(c, x) for c in (self.schedule.alpha(t.double()), self.schedule.sigma(t.double())))
        variance = (alpha * self.stds) ** 2 + sigma**2
        distance = (x**2).sum(1, True) - 2 * alpha * x @ means.T + alpha**2 * (means**2).sum(1)
        logs = -0.5 * distance / variance - 0.5 * means.shape[1] * (2 * math.pi * variance).log()
        return self.prior(cond, len(x)) + logs, alpha, variance

    def prior(self, cond: Condition | None, count: int) -> Tensor:
        """Return log w_k for each of `count` samples, -inf outside the sample's class: (B, K)."""
        logs = self.weights.log().expand(count, -1)
        if cond is None:
            return logs
        one_hot = getattr(cond, "one_hot", None)
        if self.classes is None or one_hot is None:
            raise ValueError(f"condition {type(cond).__name__}, expected one with one_hot and a mixture with classes")
        expected = (count, int(self.classes.max()) + 1)
        if one_hot.shape != expected:
            raise ValueError(f"one_hot has shape {tuple(one_hot.shape)}, expected {expected}")
        allowed = one_hot[:, self.classes] + (one_hot.sum(1, True) == 0)
        return logs.masked_fill(allowed == 0, -math.inf)

    def weight(self, t: Tensor) -> Tensor:
        """Return 1: the exact mean is the minimum under every weight."""
        return torch.ones_like(t)

    def sample(self, n: int, rng: torch.Generator, *, cond: Condition | None = None) -> Tensor:
        """Sample n points of the mixture, shape (n, *means.shape[1:]), fp32, on rng's device."""
        k = self.prior(cond, n).exp().multinomial(1, generator=rng).squeeze(1)
        noise = torch.randn(n, *self.means.shape[1:], generator=rng, device=rng.device, dtype=torch.float64)
        return (self.means[k] + expand(self.stds[k], noise) * noise).float()


def ring(
    modes: int = 8, *, schedule: NoiseSchedule | None = None, radius: float = 0.8, std: float = 0.05
) -> GaussianMixture:
    """Return equal modes on a circle in the plane, each a class of its own, on EDM's schedule by default."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(means, schedule or EDM(), stds=std, classes=torch.arange(modes))


def two_modes(*, schedule: NoiseSchedule | None = None, apart: float = 1.2, std: float = 0.1) -> GaussianMixture:
    """Return two equal modes in the plane, each a class of its own: the setting of Fig. 3.

    Distribution matching without the regression loss drops one of them, except at noise that merges them.
    """
    means = torch.tensor([[-apart / 2, 0.0], [apart / 2, 0.0]])
    return GaussianMixture(means, schedule or EDM(), stds=std, classes=torch.arange(2))

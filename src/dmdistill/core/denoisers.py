"""Denoisers: every kind of diffusion network as its posterior mean, mu(x_t, t, c) = E[x | x_t, c] (Eq. 11).

In terms of mu and the noise schedule's (alpha, sigma) the algorithm needs no score, no SNR and no parameterisation.
To bring a model of your own, subclass `Denoiser`.
"""

from __future__ import annotations

import copy
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from dmdistill.core.schedules import NoiseSchedule, expand

__all__ = [
    "Condition",
    "Denoiser",
    "EDMDenoiser",
    "EpsDenoiser",
    "FlowDenoiser",
    "GuidedDenoiser",
    "VDenoiser",
    "X0Denoiser",
]


class Condition(Protocol):
    """Conditions of a batch of samples: labels, prompts. The core uses these methods only."""

    def null(self) -> Self:
        """Return as many null conditions: the unconditional branch of classifier-free guidance."""
        ...

    def concat(self, other: Self) -> Self:
        """Return these conditions, followed by those of `other`."""
        ...

    def __getitem__(self, rows: slice) -> Self:
        """Return the conditions of some samples."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the conditions on a device."""
        ...


class Denoiser(nn.Module):
    """A diffusion network F with its noise schedule, called as its posterior mean.

    Subclasses say how F's output becomes mu (`mean`) and how the base model was trained (`weight`); one whose network
    wants other inputs overrides `forward`.

    Attributes:
        precision: dtype in which F computes, by autocast; None leaves autocast as it is. All else stays in x_t's.
    """

    precision: torch.dtype | None = None

    def __init__(self, net: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return mu of x_t (B ...) at times t (B): in the shape and dtype of x_t, whatever precision F computes in."""
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        return self.mean(self.network_output(x_t, t, cond), x_t, alpha, sigma)

    def network_output(self, x: Tensor, noise: Tensor, cond: Condition | None) -> Tensor:
        """Return F's output, computed in `precision`, in the dtype of x."""
        if self.precision is None:  # an autocast of the caller's stays as it is
            return self.net(x, noise, cond).to(x.dtype)
        # without a cache: a weight that was cast would stay until the pass ends
        with torch.autocast(x.device.type, self.precision, cache_enabled=False):
            return self.net(x, noise, cond).to(x.dtype)

    def mean(self, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return mu from the network's output f. All but f are B ... or broadcast over it."""
        raise NotImplementedError

    def weight(self, t: Tensor) -> Tensor:
        """Return the factor on |mu - x|^2 with which the base model was trained, as Eq. 6 uses it. Shape (B,), as t."""
        raise NotImplementedError


class X0Denoiser(Denoiser):
    """F predicts the image."""

    def mean(self, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return f

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class EpsDenoiser(Denoiser):
    """F predicts the noise. Its training loss |F - eps|^2 is alpha^2/sigma^2 |mu - x|^2.

    ValueError on a path with alpha = 0 at its last time, where the noise says nothing of the image.
    """

    def __init__(self, net: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__(net, schedule)
        if not schedule.alpha(torch.tensor([schedule.t_max], dtype=torch.float64)) > 0:
            raise ValueError("a noise prediction on a path with alpha = 0 at its last time: mu is undefined there")

    def mean(self, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * f) / alpha

    def weight(self, t: Tensor) -> Tensor:
        return (self.schedule.alpha(t) / self.schedule.sigma(t)) ** 2


class VDenoiser(Denoiser):
    """F predicts v = alpha eps - sigma x on a variance-preserving path (Salimans & Ho 2022).

    Its training loss |F - v|^2 is |mu - x|^2 / sigma^2.
    """

    def mean(self, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x_t - sigma * f

    def weight(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t) ** -2


class FlowDenoiser(Denoiser):
    """F predicts the velocity eps - x of a rectified flow (Liu et al. 2022).

    Its training loss |F - (eps - x)|^2 is |mu - x|^2 / sigma^2.
    """

    def mean(self, f: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x_t - sigma * f

    def weight(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t) ** -2


class EDMDenoiser(Denoiser):
    """EDM's preconditioning: mu = c_skip x_t + c_out F(c_in x_t, ln(sigma)/4) (Karras et al. 2022, table 1)."""

    def __init__(self, net: nn.Module, schedule: NoiseSchedule, *, sigma_data: float = 0.5) -> None:
        super().__init__(net, schedule)
        self.sigma_data = sigma_data

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        sigma = expand(self.schedule.sigma(t), x_t)
        total = sigma**2 + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt()
        return c_skip * x_t + c_out * self.network_output(c_in * x_t, self.schedule.sigma(t).log() / 4, cond)

    def weight(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t) ** -2 + self.sigma_data**-2


class GuidedDenoiser(Denoiser):
    """Classifier-free guidance (section 3.4): mu_null + scale (mu_cond - mu_null), both from one batched call.

    Args:
        denoiser: the denoiser, unguided.
        scale: of guidance; 1 is none.
        scale_range: least and largest scale that distribution matching draws, uniformly for each sample, instead; None
            for none.
        norm_cap: largest L2 norm of a sample's guided mean, as a multiple of that of its mu_cond; a longer one is
            shortened to it. 0 for no cap.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, *, scale_range: tuple[float, float] | None = None, norm_cap: float = 0.0
    ) -> None:
        nn.Module.__init__(self)  # the network is the inner denoiser's: registered once
        self.schedule = denoiser.schedule
        self.denoiser = denoiser
        self.scale, self.scale_range, self.norm_cap = scale, scale_range, norm_cap
        self.scales: Tensor | None = None

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        if self.scale == 1 and self.scales is None:
            return self.denoiser(x_t, t, cond)
        mu_null, mu_cond = self.estimates(x_t, t, cond)
        scale = self.scale if self.scales is None else expand(self.scales, x_t)
        guided = mu_null + scale * (mu_cond - mu_null)
        return cap_norm(guided, mu_cond, self.norm_cap) if self.norm_cap else guided

    def with_scales(self, scales: Tensor) -> GuidedDenoiser:
        """Return the same denoiser, hooks included, with a scale for each sample (B)."""
        guided = copy.copy(self)
        guided.scales = scales
        return guided

    def estimates(self, x_t: Tensor, t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """Return mu without and with the condition, each B .... ValueError without a condition."""
        if cond is None:
            raise ValueError(
                f"guidance {self.scale} without a condition: an unconditional teacher allows guidance 1 only"
            )
        mu_null, mu_cond = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), cond.null().concat(cond)).chunk(2)
        return mu_null, mu_cond

    def weight(self, t: Tensor) -> Tensor:
        return self.denoiser.weight(t)


def cap_norm(x: Tensor, like: Tensor, cap: float) -> Tensor:
    """Shorten each sample of x, B ..., to at most `cap` times the L2 norm of that of `like`."""
    norms = [images.flatten(1).norm(dim=1) for images in (x, like)]
    factor = (cap * norms[1] / norms[0].clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
    return expand(factor, x) * x

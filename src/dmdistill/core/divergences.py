"""f-distill (Xu et al. 2025): other f-divergences of the student from the teacher, as weights of DMD's gradient.

With r = p_real/p_fake at x_t the gradient of an f-divergence is that of DMD, reverse KL's, times h(r) = r^2 f''(r).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.core.losses import Estimates, describe_output, weight_eq8
from dmdistill.core.schedules import expand

__all__ = ["DIVERGENCES", "DensityRatioWeight", "Discriminator", "Divergence", "RatioAverages"]

Discriminator = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""(x_t, t, cond) -> logits, B ..., of x_t being a diffused real image rather than a generated one."""

Divergence = Callable[[Tensor], Tensor]
"""r (B) -> h(r) = r^2 f''(r) (B), up to a constant factor."""

DIVERGENCES: dict[str, Divergence] = {
    "rkl": torch.ones_like,  # reverse KL: DMD
    "kl": lambda r: r,  # forward KL
    "js": lambda r: r / (1 + r),  # Jensen-Shannon
    "sf": lambda r: 1 / (1 + r),  # softened reverse KL: of the mixture of both from the teacher
    "neyman": lambda r: 1 / r.clamp(min=1e-8),  # Neyman's chi-squared
    "sh": torch.sqrt,  # squared Hellinger
    "jf": lambda r: 1 + r,  # Jeffreys
}
"""h by the divergence's name."""

EPSILON = 1e-6  # of the two normalizations


class RatioAverages:
    """Moving averages of the density ratio, one for each bin of times, from 1 on.

    Args:
        bins: how many.
        decay: the share that an average keeps where its bin has samples, in [0, 1); 0 for their mean alone.
    """

    def __init__(self, bins: int = 10, decay: float = 0.0) -> None:
        self.decay, self.values = decay, torch.ones(bins)

    def update(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Include samples, of which each bin has the sum of ratios and the number. Returns the averages, (bins,)."""
        self.values = self.values.to(sums)
        means = sums / counts.clamp(min=torch.finfo(sums.dtype).tiny)
        self.values = torch.where(counts > 0, self.decay * self.values + (1 - self.decay) * means, self.values)
        return self.values

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Return to averages."""
        self.values = state["values"]


@dataclass(frozen=True, eq=False)
class DensityRatioWeight:
    """Eq. 8 times h(r), with r of a discriminator, normalized twice as in the authors' code.

    First r is divided by its average over samples of the same part of the range of t; then h by its mean. Both means
    are over the images that all processes compute at once: with gradient accumulation, over one microbatch of each.

    Attributes:
        discriminator: whose logits at x_t are the logarithm of r.
        divergence: h, or its name in `DIVERGENCES`.
        t_min, t_max: the range of t that is divided into bins.
        mean: averages a tensor over all processes.
        averages: of r in the bins: by default the mean over the samples of a batch, in tenths.
    """

    discriminator: Discriminator
    divergence: str | Divergence
    t_min: float
    t_max: float
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    averages: RatioAverages = field(default_factory=RatioAverages)

    def __call__(self, at: Estimates) -> Tensor:
        """Return the factor on mu_fake - mu_real, B 1 ... 1."""
        divergence = DIVERGENCES[self.divergence] if isinstance(self.divergence, str) else self.divergence
        if divergence is DIVERGENCES["rkl"]:
            return weight_eq8(at)
        h = divergence(r := self.ratio(at))
        if not isinstance(h, Tensor) or h.shape != r.shape:
            given, expected = describe_output(h), tuple(r.shape)
            raise ValueError(f"the divergence returned {given}, expected {expected}: one value per density ratio")
        h = h / (self.mean(h.mean()) + EPSILON)
        return weight_eq8(at) * expand(h, at.x)

    def ratio(self, at: Estimates) -> Tensor:
        """Return r (B), clipped, and divided by the average of its bin of times."""
        logits = self.discriminator(at.x_t, at.t, at.cond).flatten(1).mean(1).float()
        r = logits.clamp(-10, 10).exp().clamp(0.1, 20)
        bins = len(self.averages.values)
        index = ((at.t - self.t_min) / ((self.t_max - self.t_min) / bins)).long().clamp(0, bins - 1)
        member = torch.nn.functional.one_hot(index, bins).to(r)
        averages = self.averages.update(self.mean(r @ member), self.mean(member.sum(0)))
        return r / (averages[index] + EPSILON)

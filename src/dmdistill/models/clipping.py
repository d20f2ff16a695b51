"""Clipping of predicted images while a teacher is sampled, as its scheduler does it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser

__all__ = ["ClippedDenoiser", "Clipping", "clip"]


@dataclass(frozen=True)
class Clipping:
    """What is done to each predicted image E[x | x_t] before the solver uses it.

    Attributes:
        limit: images are clipped to [-limit, limit].
        quantile: for dynamic thresholding (Saharia et al. 2022), the quantile of |x| of each image to which it is
            clipped and by which it is divided, where it lies between 1 and `limit`; None to clip only.
    """

    limit: float = 1.0
    quantile: float | None = None

    def __post_init__(self) -> None:
        if not self.limit > 0 or (self.quantile is not None and not 0 <= self.quantile <= 1):
            raise ValueError(f"{self}: expected a limit above 0, and a quantile from 0 to 1")

    def __str__(self) -> str:
        """Return the words in which it is shown to users."""
        if self.quantile is None:
            return f"to [-{self.limit:g}, {self.limit:g}]"
        return f"to its quantile {self.quantile:g}, at most {self.limit:g} (dynamic thresholding)"

    def __call__(self, x: Tensor) -> Tensor:
        """Clip images (B ...)."""
        if self.quantile is None:
            return x.clamp(-self.limit, self.limit)
        highest = torch.quantile(x.flatten(1).abs(), self.quantile, dim=1).clamp(1, self.limit)
        threshold = highest.reshape(-1, *[1] * (x.ndim - 1))
        return x.clamp(-threshold, threshold) / threshold


class ClippedDenoiser(Denoiser):
    """A denoiser with clipped predictions, for a solver; the distillation gradient uses it without.

    Args:
        denoiser: guided or not.
        clipping: of its output.
    """

    def __init__(self, denoiser: Denoiser, clipping: Clipping) -> None:
        nn.Module.__init__(self)  # the network is the inner denoiser's: registered once
        self.schedule, self.denoiser, self.clipping = denoiser.schedule, denoiser, clipping

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the clipped mu of x_t (B ...) at times t (B)."""
        return self.clipping(self.denoiser(x_t, t, cond))

    def weight(self, t: Tensor) -> Tensor:
        """Return the inner denoiser's weight."""
        return self.denoiser.weight(t)


def clip(denoiser: Denoiser, clipping: Clipping | None) -> Denoiser:
    """Return a denoiser with clipped predictions, for a solver; the denoiser itself where there is no clipping."""
    return denoiser if clipping is None else ClippedDenoiser(denoiser, clipping)

"""The summands of a generator's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dmdistill.core.denoisers import Denoiser
from dmdistill.core.losses import (
    Distance,
    Weight,
    distribution_matching_loss,
    pseudo_huber,
    regression_loss,
    weight_eq8,
)
from dmdistill.core.samples import Batch, NoiseSource, Rows, Samples

__all__ = ["DistributionMatching", "Regression", "Term"]


class Term(Protocol):
    """One summand of a loss. Every random draw comes from `noise`; `name` is that of the loss in the log."""

    @property
    def name(self) -> str:
        """The name of its loss in the log."""
        ...

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the loss, a scalar."""
        ...


@dataclass(frozen=True, eq=False)
class DistributionMatching:
    """The distribution-matching gradient of Eq. 7 and 8.

    Attributes:
        real: mu_real, the frozen teacher, guided where wanted. fake: mu_fake.
        low, high: the fractions of the time range that times are drawn from.
        weight: of the gradient. rows: the images that it sees; the paper's LAION runs match the pairs' images too.
    """

    real: Denoiser
    fake: Denoiser
    low: float = 0.02
    high: float = 0.98
    weight: Weight = weight_eq8
    rows: Rows = "fresh"
    name: str = "loss_kl"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the loss whose gradient is that of Eq. 7."""
        seen = samples.select(self.rows)
        t, eps = noise.diffusion(seen, self.real.schedule, self.low, self.high)
        return distribution_matching_loss(seen.x, self.real, self.fake, t, eps, seen.cond, weight=self.weight)


@dataclass(frozen=True, eq=False)
class Regression:
    """The regression of Eq. 9: the distance of G(z_ref) to the teacher's image of the same noise."""

    distance: Distance = pseudo_huber
    name: str = "loss_reg"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the mean distance. ValueError for a batch without pairs."""
        if batch.y_ref is None:
            raise ValueError("a regression needs pairs: the batch has no z_ref and y_ref")
        return regression_loss(samples.select("paired").x, batch.y_ref, self.distance)

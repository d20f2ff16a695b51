"""What one iteration consumes and what its generator makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition
from dmdistill.core.schedules import NoiseSchedule

__all__ = ["Batch", "NoiseSource", "RandomNoise", "Rows", "Samples"]

Rows = Literal["fresh", "paired", "all"]
"""The generated images that a term sees: those of fresh noise, those of the pairs' noise, or both."""


@dataclass(frozen=True)
class Batch:
    """The data of one iteration.

    Attributes:
        z: noise for the generated images, B ..., with its conditions `cond`.
        z_ref: noise of the noise-image pairs; None where there is no regression. y_ref: the teacher's images of it,
            of the same shape. cond_ref: their conditions.
        z_fake: noise for further updates of the critics, k B ... for k more updates; None for the 1:1 ratio of DMD
            (DMD2 has 5:1 and 10:1). cond_fake: its conditions.
    """

    z: Tensor
    cond: Condition | None = None
    z_ref: Tensor | None = None
    y_ref: Tensor | None = None
    cond_ref: Condition | None = None
    z_fake: Tensor | None = None
    cond_fake: Condition | None = None


@dataclass(frozen=True)
class Samples:
    """Generated images: those of fresh noise, then those of the pairs' noise.

    Attributes:
        x: images, B ..., in [-1, 1]. cond: their conditions.
        fresh, paired: the numbers of images of either kind; their sum is B.
    """

    x: Tensor
    cond: Condition | None
    fresh: int
    paired: int = 0

    def select(self, rows: Rows) -> Samples:
        """Return the images of one kind. ValueError where none were generated."""
        sizes = {"fresh": self.fresh, "paired": self.paired, "all": len(self.x)}
        if sizes[rows] == 0:
            raise ValueError(f"the samples hold no {rows} images: {self.fresh} fresh, {self.paired} paired")
        if sizes[rows] == len(self.x):
            return self
        fresh, paired = self.x.split([self.fresh, self.paired])
        if rows == "fresh":
            return Samples(fresh, None if self.cond is None else self.cond[: self.fresh], self.fresh)
        return Samples(paired, None if self.cond is None else self.cond[self.fresh :], 0, self.paired)

    def detach(self) -> Samples:
        """Return the same images without their graph."""
        return Samples(self.x.detach(), self.cond, self.fresh, self.paired)

    def chunks(self, size: int) -> Iterator[Samples]:
        """Yield fresh images in groups of `size`."""
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            yield Samples(self.x[rows], None if self.cond is None else self.cond[rows], len(self.x[rows]))


class NoiseSource(Protocol):
    """Where the random draws of the losses come from."""

    def diffusion(
        self, samples: Samples, schedule: NoiseSchedule, low: float = 0.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Draw a time (B) between the fractions `low` and `high` of the range, and noise of the shape of the images."""
        ...


@dataclass(frozen=True)
class RandomNoise:
    """Noise from a generator of random numbers on the device of the images."""

    rng: torch.Generator

    def diffusion(
        self, samples: Samples, schedule: NoiseSchedule, low: float = 0.0, high: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Draw the times, then the noise."""
        t = schedule.sample_t(len(samples.x), low, high, rng=self.rng)
        return t, torch.randn(samples.x.shape, generator=self.rng, device=samples.x.device)

"""Where the random draws of the losses come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.core.samples import Samples
from dmdistill.core.schedules import NoiseSchedule
from dmdistill.core.times import Times

__all__ = ["NoiseSource", "RandomNoise", "diffusion", "gaussian"]

Draw = Callable[[int, torch.Generator], Tensor]
"""(n, rng) -> n rows of random numbers, on the device of rng."""


class NoiseSource(Protocol):
    """A source of random numbers, one row for each sample of a batch."""

    def draw(self, samples: Samples, draw: Draw) -> Tensor:
        """Draw one row per sample."""
        ...


@dataclass(frozen=True)
class RandomNoise:
    """Random numbers from a generator on the device of the images."""

    rng: torch.Generator

    def draw(self, samples: Samples, draw: Draw) -> Tensor:
        """Draw one row per sample."""
        return draw(len(samples.x), self.rng)


def gaussian(noise: NoiseSource, samples: Samples) -> Tensor:
    """Draw noise ~ N(0, I) of the shape of the images."""
    return noise.draw(samples, partial(randn, samples.x.shape[1:]))


def diffusion(noise: NoiseSource, samples: Samples, schedule: NoiseSchedule, times: Times) -> tuple[Tensor, Tensor]:
    """Draw times (B), then noise of the shape of the images: what diffuses them."""
    t = noise.draw(samples, lambda n, rng: times(schedule, n, rng))
    return t, gaussian(noise, samples)


def randn(shape: torch.Size, n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, *shape, generator=rng, device=rng.device)

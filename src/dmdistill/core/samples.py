"""What one iteration consumes and what its generator makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from dmdistill.core.denoisers import Condition

__all__ = ["Batch", "Rows", "Samples"]

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
        real: real images, B ... for each update of the critics; None where nothing needs them. cond_real: their
            conditions.
        steps: which step of a few-step generator is trained: of `z`, then of each group of `z_fake`; empty for a
            one-step generator.
    """

    z: Tensor
    cond: Condition | None = None
    z_ref: Tensor | None = None
    y_ref: Tensor | None = None
    cond_ref: Condition | None = None
    z_fake: Tensor | None = None
    cond_fake: Condition | None = None
    real: Tensor | None = None
    cond_real: Condition | None = None
    steps: tuple[int, ...] = ()

    def real_images(self, update: int) -> Samples | None:
        """Return the real images of the critics' update of this number; None without any, ValueError for too few."""
        if self.real is None:
            return None
        rows = slice(update * len(self.z), (update + 1) * len(self.z))
        if len(self.real) < rows.stop:
            raise ValueError(f"the batch has {len(self.real)} real images, expected {rows.stop} for so many updates")
        x = self.real[rows]
        return Samples(x, None if self.cond_real is None else self.cond_real[rows], len(x))


@dataclass(frozen=True)
class Samples:
    """Images: generated ones of fresh noise, then those of the pairs' noise.

    Attributes:
        x: images, B ..., in [-1, 1]. cond: their conditions.
        fresh, paired: the numbers of images of either kind; their sum is B.
        time: at which the generator was evaluated; None for its first, pure noise.
        real: real images that a discriminator compares them with; None where there are none.
    """

    x: Tensor
    cond: Condition | None
    fresh: int
    paired: int = 0
    time: float | None = None
    real: Samples | None = None

    def select(self, rows: Rows) -> Samples:
        """Return the images of one kind. ValueError where none were generated."""
        sizes = {"fresh": self.fresh, "paired": self.paired, "all": len(self.x)}
        if sizes[rows] == 0:
            raise ValueError(f"the samples hold no {rows} images: {self.fresh} fresh, {self.paired} paired")
        if sizes[rows] == len(self.x):
            return self
        fresh, paired = self.x.split([self.fresh, self.paired])
        if rows == "fresh":
            return replace(self, x=fresh, cond=None if self.cond is None else self.cond[: self.fresh], paired=0)
        return replace(self, x=paired, cond=None if self.cond is None else self.cond[self.fresh :], fresh=0)

    def detach(self) -> Samples:
        """Return the same images without their graph."""
        return replace(self, x=self.x.detach())

    def chunks(self, size: int) -> Iterator[Samples]:
        """Yield fresh images in groups of `size`."""
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            x = self.x[rows]
            yield replace(self, x=x, cond=None if self.cond is None else self.cond[rows], fresh=len(x))

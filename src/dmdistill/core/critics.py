"""What learns beside the generator, from the images that it makes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dmdistill.core.denoisers import Denoiser
from dmdistill.core.losses import denoising_loss
from dmdistill.core.samples import Batch, NoiseSource, Rows, Samples

__all__ = ["FakeScore"]


@dataclass(frozen=True, eq=False)
class FakeScore:
    """The fake score's denoising loss on generated images (Eq. 6), at times of the full range.

    Attributes:
        fake: mu_fake, trained; never guided. rows: the images that it learns from.
    """

    fake: Denoiser
    rows: Rows = "fresh"
    name: str = "loss_fake"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the denoising loss."""
        seen = samples.select(self.rows)
        t, eps = noise.diffusion(seen, self.fake.schedule)
        return denoising_loss(self.fake, seen.x, t, eps, seen.cond)

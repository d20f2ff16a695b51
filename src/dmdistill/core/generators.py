"""The student: a one-step generator, and how an objective samples it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.samples import Batch, Rows, Samples

__all__ = ["Generator", "OneStep"]


class Generator(nn.Module):
    """One-step generator G(z) = mu(prior_std z, t_max): a denoiser at pure noise (section 3.1).

    Initialised as a copy of the teacher, it starts at exactly the noise level where the pairs start.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Return images (B ...) of noise z ~ N(0, I) of the same shape."""
        schedule = self.denoiser.schedule
        return self.denoiser(schedule.prior_std * z, z.new_full((len(z),), schedule.t_max), cond)


@dataclass(frozen=True)
class OneStep:
    """Samples a one-step generator, in one call for all images of a batch.

    Args:
        generator: G, called with (z, cond).
        rows: which of the batch's noise to generate images of.
    """

    generator: nn.Module
    rows: Rows = "all"

    def __call__(self, batch: Batch) -> Samples:
        """Generate the images of a batch, with their graph."""
        z_ref = None if self.rows == "fresh" else batch.z_ref
        if self.rows == "paired":
            if z_ref is None:
                raise ValueError("the batch has no z_ref, and the sampler generates images of the pairs' noise only")
            return Samples(self.generator(z_ref, batch.cond_ref), batch.cond_ref, 0, len(z_ref))
        if z_ref is None:
            return Samples(self.generator(batch.z, batch.cond), batch.cond, len(batch.z))
        cond = concat(batch.cond, batch.cond_ref)
        x = self.generator(torch.cat([batch.z, z_ref]), cond)
        return Samples(x, cond, len(batch.z), len(z_ref))

    @torch.no_grad()
    def fresh(self, z: Tensor, cond: Condition | None) -> Samples:
        """Generate images of fresh noise, without a graph."""
        return Samples(self.generator(z, cond), cond, len(z))


def concat(cond: Condition | None, cond_ref: Condition | None) -> Condition | None:
    """Join the conditions of z and z_ref. ValueError where only one of them has any."""
    if (cond is None) != (cond_ref is None):
        raise ValueError("one of z and z_ref has conditions and the other has none, expected both or neither")
    return cond.concat(cond_ref) if cond is not None and cond_ref is not None else None

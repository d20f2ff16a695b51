"""Diagnostics of a run: the losses of DMD hardly move in a good run, these numbers do."""

from __future__ import annotations

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import expand

__all__ = ["BINS", "Probe"]

BINS = 8


class Probe:
    """Measures the three networks on the same noise every time, so that its numbers compare across a run.

    Args:
        z: noise of the generated images, B ....
        cond: their conditions.
        eps: noise that diffuses them, of the shape of z.
    """

    def __init__(self, z: Tensor, cond: Condition | None, eps: Tensor) -> None:
        self.z, self.cond, self.eps = z, cond, eps

    @torch.no_grad()
    def measure(self, generator: Generator, real: Denoiser, fake: Denoiser) -> dict[str, float]:
        """Return sample_mean, sample_std, and gap_i and fake_loss_i of BINS equal parts of the time range.

        Part 0 has the least noise. gap_i = mean|mu_fake - mu_real| and fake_loss_i = Eq. 6, at the middle of the part.
        """
        x = generator.sample(self.z, self.cond)
        values = {"sample_mean": x.mean(), "sample_std": x.std()}
        schedule = real.schedule
        for i in range(BINS):
            index = torch.full((len(x),), int((i + 0.5) * schedule.bins / BINS), device=x.device)
            t = schedule.time(index)
            x_t = schedule.diffuse(x, self.eps, t)
            mu_real, mu_fake = real(x_t, t, self.cond), fake(x_t, t, self.cond)
            values[f"gap_{i}"] = (mu_fake - mu_real).abs().mean()
            values[f"fake_loss_{i}"] = (expand(fake.weight(t), x) * (mu_fake - x) ** 2).mean()
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

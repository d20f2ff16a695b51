"""Is the run healthy? DMD's losses hardly move in a good run; these figures do."""

from __future__ import annotations

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.generators import Generator
from dmdistill.core.schedules import expand

__all__ = ["BINS", "Probe"]

BINS = 8


class Probe:
    """Measures three networks on the same noise every time, so that its figures compare across a run.

    Args:
        z, cond: noise and conditions of the images looked at.
        eps: noise that diffuses them, of z's shape.
    """

    def __init__(self, z: Tensor, cond: Condition | None, eps: Tensor) -> None:
        self.z, self.cond, self.eps = z, cond, eps

    @torch.no_grad()
    def measure(self, generator: Generator, real: Denoiser, fake: Denoiser) -> dict[str, float]:
        """sample_mean, sample_std, and for each of BINS equal parts of the time range, 0 the least noise:

        gap_i = mean|mu_fake - mu_real| and fake_loss_i = Eq. 6, both at the middle of the part.
        """
        x = generator(self.z, self.cond)
        figures = {"sample_mean": x.mean(), "sample_std": x.std()}
        schedule = real.schedule
        for i in range(BINS):
            index = torch.full((len(x),), int((i + 0.5) * schedule.bins / BINS), device=x.device)
            t = schedule.time(index)
            x_t = schedule.diffuse(x, self.eps, t)
            mu_real, mu_fake = real(x_t, t, self.cond), fake(x_t, t, self.cond)
            figures[f"gap_{i}"] = (mu_fake - mu_real).abs().mean()
            figures[f"fake_loss_{i}"] = (expand(fake.weight(t), x) * (mu_fake - x) ** 2).mean()
        return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))

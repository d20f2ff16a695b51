"""What learns beside the generator, from the images that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dmdistill.core.denoisers import Denoiser
from dmdistill.core.divergences import Discriminator
from dmdistill.core.losses import denoising_loss
from dmdistill.core.noise import NoiseSource, diffusion, gaussian
from dmdistill.core.samples import Batch, Rows, Samples
from dmdistill.core.times import ALL_TIMES, Times

__all__ = ["Augment", "DiscriminatorLoss", "FakeScore"]

Augment = Callable[[Samples, NoiseSource], Samples]
"""(samples, noise) -> augmented samples, with augmentation labels in their conditions."""


@dataclass(frozen=True, eq=False)
class FakeScore:
    """The fake score's denoising loss on generated images (Eq. 6).

    Attributes:
        fake: mu_fake, trained; never guided. rows: the images that it learns from.
        times: at which images are diffused; of the full range by default.
        augment: augments the images first, as in SiD; None for no augmentation.
    """

    fake: Denoiser
    rows: Rows = "fresh"
    times: Times = ALL_TIMES
    augment: Augment | None = None
    name: str = "loss_fake"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the denoising loss."""
        seen = samples.select(self.rows)
        if self.augment is not None:
            seen = self.augment(seen, noise)
        t, eps = diffusion(noise, seen, self.fake.schedule, self.times)
        return denoising_loss(self.fake, seen.x, t, eps, seen.cond)


@dataclass(frozen=True, eq=False)
class DiscriminatorLoss:
    """The discriminator's loss on diffused images, real and generated (Yin et al. 2024b, section 4.3).

    mean softplus(D(x_t)) + mean softplus(-D(real_t)), the times and the noise of the two independent as in DMD2.

    Attributes:
        discriminator: D, trained.
        fake: mu_fake, whose noise schedule diffuses the images and whose weight is that of SiDA.
        times: at which images are diffused.
        shared: real and generated images are diffused by the same times and noise, as in SiDA.
        weighted: multiply the loss by mean(weight(t)) / (C H W), weight(t) that of the denoising loss (SiDA, where it
            is a summand of that loss). The mean is over all samples, as in the authors' code.
        r1: weight of the approximate R1 penalty (Lin et al. 2025): mean (D(real_t) - D(real_t + 0.1 eps))^2, with
            eps ~ N(0, I).
        mean: averages a tensor over all processes.
        augment: augments both kinds of images first; None for no augmentation.
    """

    discriminator: Discriminator
    fake: Denoiser
    times: Times = ALL_TIMES
    shared: bool = False
    weighted: bool = False
    r1: float = 0.0
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    augment: Augment | None = None
    name: str = "loss_discriminator"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the loss. ValueError for a batch without real images."""
        generated, real = samples.select("fresh"), samples.real
        if real is None:
            raise ValueError("a discriminator needs real images: the batch has none")
        if self.augment is not None:
            generated, real = self.augment(generated, noise), self.augment(real, noise)
        schedule = self.fake.schedule
        t, eps = diffusion(noise, generated, schedule, self.times)
        t_real, eps_real = (t, eps) if self.shared else diffusion(noise, real, schedule, self.times)
        x_t, real_t = schedule.diffuse(generated.x, eps, t), schedule.diffuse(real.x, eps_real, t_real)
        logits = self.discriminator(real_t, t_real, real.cond)
        loss = F.softplus(self.discriminator(x_t, t, generated.cond)).mean() + F.softplus(-logits).mean()
        if self.weighted:
            loss = loss * self.mean(self.fake.weight(t).mean()) / x_t[0].numel()
        if self.r1:
            moved = self.discriminator(real_t + 0.1 * gaussian(noise, real), t_real, real.cond)
            loss = loss + self.r1 * (moved - logits).square().mean()
        return loss

"""The summands of a generator's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dmdistill.core.denoisers import Denoiser, GuidedDenoiser
from dmdistill.core.divergences import Discriminator
from dmdistill.core.losses import (
    Distance,
    Weight,
    distribution_matching_loss,
    gradient_in,
    guidance_loss,
    pseudo_huber,
    regression_loss,
    score_identity_loss,
    weight_eq8,
)
from dmdistill.core.noise import NoiseSource, diffusion
from dmdistill.core.samples import Batch, Rows, Samples
from dmdistill.core.schedules import NoiseSchedule
from dmdistill.core.times import ALL_TIMES, MATCHING_TIMES, SID_TIMES, Times, UniformTimes

__all__ = [
    "Adversarial",
    "DistributionMatching",
    "GuidanceAugmentation",
    "Regression",
    "ScoreIdentity",
    "Term",
]


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
        real: mu_real, the frozen teacher, guided where wanted; with a range of scales each sample has one of its own.
        fake: mu_fake.
        times: at which images are diffused.
        weight: of the gradient. rows: the images that it sees; the paper's LAION runs match the pairs' images too.
    """

    real: Denoiser
    fake: Denoiser
    times: Times = MATCHING_TIMES
    weight: Weight = weight_eq8
    rows: Rows = "fresh"
    name: str = "loss_kl"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the loss whose gradient is that of Eq. 7."""
        seen = samples.select(self.rows)
        t, eps = diffusion(noise, seen, self.real.schedule, self.times)
        real = draw_guidance(self.real, seen, noise)
        return distribution_matching_loss(seen.x, real, self.fake, t, eps, seen.cond, weight=self.weight)


def draw_guidance(real: Denoiser, samples: Samples, noise: NoiseSource) -> Denoiser:
    """Return a teacher whose guidance is drawn for each sample where it has a range of scales; else itself."""
    if not isinstance(real, GuidedDenoiser) or real.scale_range is None:
        return real
    low, high = real.scale_range
    share = noise.draw(samples, lambda n, rng: torch.rand(n, generator=rng, device=rng.device))
    return real.with_scales(low + (high - low) * share)


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


@dataclass(frozen=True, eq=False)
class Adversarial:
    """The generator's loss in DMD2's GAN on diffused images: mean softplus(-D(x_t)) (Yin et al. 2024b, section 4.3).

    Attributes:
        discriminator: D; its parameters get no gradient.
        schedule: diffuses the images.
        times: at which images are diffused.
    """

    discriminator: Discriminator
    schedule: NoiseSchedule
    times: Times = ALL_TIMES
    name: str = "loss_gan"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the mean over all logits."""
        seen = samples.select("fresh")
        t, eps = diffusion(noise, seen, self.schedule, self.times)

        def loss(x: Tensor) -> Tensor:
            return F.softplus(-self.discriminator(self.schedule.diffuse(x, eps, t), t, seen.cond)).mean()

        return gradient_in(seen.x, loss)


@dataclass(frozen=True, eq=False)
class GuidanceAugmentation:
    """The part of the guided distribution-matching gradient that is due to guidance, at noise of its own.

    Decoupled DMD (Liu et al. 2025) adds it to the `DistributionMatching` of the unguided teacher.

    Attributes:
        real: mu_real, guided.
        times: at which images are diffused.
        weight: of the gradient.
        cleaner: draw only times below the one at which a few-step generator was evaluated ("decoupled-hybrid").
    """

    real: GuidedDenoiser
    times: UniformTimes = MATCHING_TIMES
    weight: Weight = weight_eq8
    cleaner: bool = True
    name: str = "loss_guidance"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the loss whose gradient is that of guidance."""
        seen, schedule = samples.select("fresh"), self.real.schedule
        times = self.times
        if self.cleaner and seen.time is not None:
            times = times.below(schedule, seen.time)
        t, eps = diffusion(noise, seen, schedule, times)
        return guidance_loss(seen.x, self.real, t, eps, seen.cond, weight=self.weight)


@dataclass(frozen=True, eq=False)
class ScoreIdentity:
    """The loss of score identity distillation (SiD, Zhou et al. 2024), and of its adversarial form (SiDA, 2025).

    L = mean of (mu_real - mu_fake) ((mu_real - x) - alpha (mu_real - mu_fake)) / mean|x - mu_real|, in SiDA
    0.5 L + 0.5 gan_weight mean(softplus(-D(x_t))) mean(1/mean|x - mu_real|), D's logits clamped to [-10, 10].

    Attributes:
        real: mu_real, the frozen teacher. fake: mu_fake. Gradients pass through both.
        alpha: 1.2 or 1 in SiD, 1 in SiDA.
        times: at which images are diffused.
        discriminator: of SiDA; None for SiD.
        gan_weight: of the adversarial loss beside SiD's.
        mean: averages a tensor over all processes.
    """

    real: Denoiser
    fake: Denoiser
    alpha: float = 1.0
    times: Times = SID_TIMES
    discriminator: Discriminator | None = None
    gan_weight: float = 1e-4
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    name: str = "loss_sid"

    def __call__(self, samples: Samples, batch: Batch, noise: NoiseSource) -> Tensor:
        """Return the mean loss; in SiDA the mean of this and of the weighted adversarial loss.

        The adversarial loss is the mean softplus(-D(x_t)) times the mean of 1/mean|x - mu_real| over the images that
        all processes compute at once: as in the authors' code all samples have the same weight in it.
        """
        seen, schedule = samples.select("fresh"), self.real.schedule
        t, eps = diffusion(noise, seen, schedule, self.times)

        def loss(x: Tensor) -> Tensor:
            x_t = schedule.diffuse(x, eps, t)
            mu_real, mu_fake = self.real(x_t, t, seen.cond), self.fake(x_t, t, seen.cond)
            identity = score_identity_loss(x, mu_real, mu_fake, alpha=self.alpha)
            if self.discriminator is None:
                return identity.mean()
            logits = self.discriminator(x_t, t, seen.cond).flatten(1).clamp(-10, 10)
            error = (x - mu_real).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
            adversarial = F.softplus(-logits).mean() * self.mean((1 / error).mean())
            return 0.5 * identity.mean() + 0.5 * self.gan_weight * adversarial

        return gradient_in(seen.x, loss)

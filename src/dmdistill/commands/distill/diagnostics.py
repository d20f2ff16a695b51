"""Diagnostics of a run: the losses of DMD hardly move in a good run, these numbers do."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.divergences import Discriminator
from dmdistill.core.generators import Generator
from dmdistill.core.losses import denoising_loss
from dmdistill.core.samples import Samples
from dmdistill.core.schedules import NoiseSchedule, expand

__all__ = ["BINS", "Probe", "describe_images", "fake_lag", "saturation_change"]

BINS = 8


class Probe:
    """Measures the networks on the same noise every time, so that its numbers compare across a run.

    Args:
        z: noise of the generated images, B ....
        cond: their conditions.
        eps: noise that diffuses them, of the shape of z.
        latents: whether the images are latents, which have no colours.
    """

    def __init__(self, z: Tensor, cond: Condition | None, eps: Tensor, *, latents: bool = False) -> None:
        self.z, self.cond, self.eps, self.latents = z, cond, eps, latents

    def first(self, count: int) -> tuple[Tensor, Condition | None]:
        """Return noise and conditions of the first so many images; fewer where there are not so many."""
        return self.z[:count], None if self.cond is None else self.cond[:count]

    @torch.no_grad()
    def measure(
        self,
        generator: Generator,
        real: Denoiser,
        fake: Denoiser,
        discriminator: Discriminator | None = None,
        images: Samples | None = None,
    ) -> dict[str, float]:
        """Return the figures of generated images, of the matching gradient, of the fake score and of a discriminator.

        All but the first are measured at the middle of BINS equal parts of the time range; part 0 has the least noise.

        Args:
            generator: G.
            real: mu_real, guided.
            fake: mu_fake.
            discriminator: None without a GAN.
            images: real ones, at most as many as generated ones, that a discriminator needs.

        Returns:
            Those of `describe_images`, named sample_*; gap_i = mean|mu_fake - mu_real| and fake_loss_i = Eq. 6;
            matching_mean, the mean of mu_real - mu_fake, along which distribution matching moves the images, and in
            colour matching_saturation, the change of saturation along it, or of latents matching_mean_c of each
            channel; accuracy_generated and accuracy_real, the shares of generated and of real images, diffused, that
            the discriminator tells.
        """
        x = generator.sample(self.z, self.cond)
        values = describe_images(x, "sample", latents=self.latents)
        moves = []
        for i, t in enumerate(probe_times(real.schedule, x)):
            x_t = real.schedule.diffuse(x, self.eps, t)
            mu_real, mu_fake = real(x_t, t, self.cond), fake(x_t, t, self.cond)
            moves.append(mu_real - mu_fake)
            values[f"gap_{i}"] = moves[-1].abs().mean()
            values[f"fake_loss_{i}"] = (expand(fake.weight(t), x) * (mu_fake - x) ** 2).mean()
        values |= describe_move(x, torch.stack(moves).mean(0), latents=self.latents)
        if discriminator is not None and images is not None:
            generated = Samples(x, self.cond, len(x))
            values["accuracy_generated"] = 1 - self.share_called_real(discriminator, real.schedule, generated)
            values["accuracy_real"] = self.share_called_real(discriminator, real.schedule, images)
        return to_floats(values)

    def share_called_real(self, discriminator: Discriminator, schedule: NoiseSchedule, images: Samples) -> Tensor:
        """Return the share of images, diffused, whose mean logit is above 0."""
        eps = self.eps[: len(images.x)]
        logits = [
            discriminator(schedule.diffuse(images.x, eps, t), t, images.cond).flatten(1).mean(1)
            for t in probe_times(schedule, images.x)
        ]
        return (torch.stack(logits) > 0).float().mean()

    @torch.no_grad()
    def measure_teacher(self, teacher: Denoiser, images: Samples) -> dict[str, float]:
        """Return the figures that those of the run compare with: of images of the teacher's distribution.

        Args:
            teacher: the teacher's denoiser, unguided: a guided one is no posterior mean.
            images: of the teacher or real ones, at most as many as generated ones.

        Returns:
            Those of `describe_images`, named teacher_*, and teacher_loss, the mean of Eq. 6 at the times of `measure`.
        """
        x, eps = images.x, self.eps[: len(images.x)]
        losses = [denoising_loss(teacher, x, t, eps, images.cond) for t in probe_times(teacher.schedule, x)]
        return to_floats(
            describe_images(x, "teacher", latents=self.latents) | {"teacher_loss": torch.stack(losses).mean()}
        )


def probe_times(schedule: NoiseSchedule, x: Tensor) -> Iterator[Tensor]:
    """Yield the middle of each of BINS equal parts of the time range, once for every image (B)."""
    for i in range(BINS):
        index = torch.full((len(x),), int((i + 0.5) * schedule.bins / BINS), device=x.device)
        yield schedule.time(index)


def fake_lag(fake_losses: list[float], teacher_loss: float) -> float:
    """Return how far the fake score lags behind the generator; 1 where it knows the student as the teacher knows data.

    It is the fake score's denoising loss (Eq. 6) on the student's images, divided by the teacher's on images of its
    own, or on real ones: both are means over the same BINS noise levels, with the same noise. A student of blurred or
    few images is easier to denoise, so that the lag begins below 1; above 1 the fake score has not learned the images.

    Args:
        fake_losses: at each noise level.
        teacher_loss: the mean of the teacher's.
    """
    return fmean(fake_losses) / max(teacher_loss, 1e-12)


def describe_images(x: Tensor, name: str, *, latents: bool) -> dict[str, Tensor]:
    """Return {name}_mean, the brightness, and {name}_std of images; their saturation in colour.

    Saturation is the mean over pixels of the largest minus the smallest channel: 0 of grey, 2 of pure red. Latents have
    {name}_mean_c and {name}_std_c of each channel c instead.

    Args:
        x: images in [-1, 1], or latents, B C H W.
        name: of whose they are.
        latents: whether they are latents.
    """
    values = {f"{name}_mean": x.mean(), f"{name}_std": x.std()}
    if latents:
        for c, channel in enumerate(x.unbind(1)):
            values |= {f"{name}_mean_{c}": channel.mean(), f"{name}_std_{c}": channel.std()}
    elif x.shape[1] == 3:
        values[f"{name}_saturation"] = (x.amax(1) - x.amin(1)).mean()
    return values


def describe_move(x: Tensor, move: Tensor, *, latents: bool) -> dict[str, Tensor]:
    """Return how a move of images, both B C H W, changes brightness and saturation, or the channels of latents."""
    values = {"matching_mean": move.mean()}
    if latents:
        return values | {f"matching_mean_{c}": channel.mean() for c, channel in enumerate(move.unbind(1))}
    return values | ({"matching_saturation": saturation_change(x, move)} if x.shape[1] == 3 else {})


def saturation_change(x: Tensor, move: Tensor) -> Tensor:
    """Return the derivative at s = 0 of the saturation of x + s move, both B 3 H W."""
    largest, smallest = (move.gather(1, index) for index in (x.argmax(1, keepdim=True), x.argmin(1, keepdim=True)))
    return (largest - smallest).mean()


def to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Return scalars as numbers, copied from their device at once."""
    return dict(zip(values, torch.stack([*values.values()]).tolist(), strict=True))

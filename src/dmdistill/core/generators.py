"""The student: a generator of one or few steps, and how an objective samples it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.noise import NoiseSource, gaussian
from dmdistill.core.samples import Batch, Rows, Samples

__all__ = ["Generator", "MultiStep", "OneStep", "Transition", "derived_noise"]

Transition = Literal["sde", "ode"]
"""How a few-step generator goes to its next time: by fresh noise, or the noise that its image leaves of its input."""


class Generator(nn.Module):
    """Generator of one or few steps: a denoiser, evaluated at fixed times.

    In one step G(z) = mu(prior_std z, t_max) (section 3.1): initialised as a copy of the teacher, it starts at exactly
    the noise level where the pairs start. With more steps each one's image is diffused to the next time (Yin et al.
    2024b, section 4.4).

    Args:
        denoiser: the network as posterior mean.
        timesteps: the times at which it is evaluated, falling; the schedule's `t_max` by default. The first input is
            pure noise, whatever its time.
        transition: "sde" diffuses an image with fresh noise, "ode" with the noise that it leaves of its input.

    Raises:
        ValueError: the times do not fall.
    """

    def __init__(self, denoiser: Denoiser, timesteps: Sequence[float] = (), transition: Transition = "sde") -> None:
        super().__init__()
        self.denoiser = denoiser
        self.timesteps = tuple(timesteps) or (denoiser.schedule.t_max,)
        self.transition: Transition = transition
        if any(later >= earlier for earlier, later in pairwise(self.timesteps)):
            raise ValueError(
                f"timesteps {' '.join(f'{t:g}' for t in self.timesteps)}, expected each below the one before"
            )

    def forward(self, x: Tensor, cond: Condition | None = None, step: int = 0) -> Tensor:
        """Return the images (B ...) of a step: of noise z ~ N(0, I) in step 0, of x_t at its time in a later one."""
        t = self.timesteps[step]
        x_t = self.denoiser.schedule.noise_std(t) * x if step == 0 else x
        return self.denoiser(x_t, x.new_full((len(x),), t), cond)

    def next_input(self, x: Tensor, images: Tensor, step: int, eps: Callable[[], Tensor]) -> Tensor:
        """Return the input of the step after `step`.

        Args:
            x: the input of `step`, B ....
            images: its output, of that shape.
            step: the number of the step, from 0.
            eps: draws noise of that shape, for the transition "sde".
        """
        schedule = self.denoiser.schedule
        times = torch.stack([x.new_full((), t) for t in self.timesteps[step : step + 2]])
        (alpha, alpha_next), (sigma, sigma_next) = schedule.alpha(times), schedule.sigma(times)
        if self.transition == "sde":
            return alpha_next * images + sigma_next * eps()
        x_t = schedule.noise_std(self.timesteps[0]) * x if step == 0 else x
        return alpha_next * images + sigma_next / sigma * (x_t - alpha * images)

    def sample(
        self, z: Tensor, cond: Condition | None = None, *, noise: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Return the images (B ...) of all steps.

        Args:
            z: noise ~ N(0, I), B ....
            cond: conditions.
            noise: returns the noise of the transition after a step, of the shape of z; by default it follows from z.
        """
        last = len(self.timesteps) - 1
        return self(self.step_input(last, z, cond, noise or partial(derived_noise, z)), cond, last)

    def step_input(self, step: int, z: Tensor, cond: Condition | None, noise: Callable[[int], Tensor]) -> Tensor:
        """Return the input of a step (B ...), as the steps before it make it of noise z; `noise` as in `sample`."""
        x = z
        for before in range(step):
            x = self.next_input(x, self(x, cond, before), before, partial(noise, before))
        return x


def derived_noise(z: Tensor, step: int) -> Tensor:
    """Return noise ~ N(0, I) of the shape of z, B ..., that each sample's own z decides: no batch changes an image."""
    seeds = [zlib.crc32(sample.numpy().tobytes(), step) for sample in z.detach().float().cpu().contiguous()]
    rows = [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(z)


@dataclass(frozen=True)
class OneStep:
    """Samples a one-step generator, in one call for all images of a batch.

    Args:
        generator: G, called with (z, cond).
        rows: which of the batch's noise to generate images of.
    """

    generator: nn.Module
    rows: Rows = "all"

    def __call__(self, batch: Batch, noise: NoiseSource) -> Samples:
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

    def fresh(self, batch: Batch, noise: NoiseSource) -> Iterator[Samples]:
        """Yield the images of `z_fake` in groups of the batch's size, made in one call, without a graph."""
        if batch.z_fake is not None:
            with torch.no_grad():
                x = self.generator(batch.z_fake, batch.cond_fake)
            yield from Samples(x, batch.cond_fake, len(x)).chunks(len(batch.z))


@dataclass(frozen=True)
class MultiStep:
    """Samples one step of a few-step generator, whose input is made as in sampling: DMD2's backward simulation.

    Which step it is stands in the batch. Only that step has a graph (Yin et al. 2024b, section 4.5).

    Args:
        generator: G, called with (x, cond, step).
        inputs: "simulated" ones, by the generator's own steps before; or "data", real images diffused.
    """

    generator: nn.Module
    inputs: Literal["simulated", "data"] = "simulated"

    def __call__(self, batch: Batch, noise: NoiseSource) -> Samples:
        """Generate the images of the batch's step, with their graph."""
        return self.generate(batch.z, batch.cond, batch.steps[0] if batch.steps else 0, batch.real_images(0), noise)

    def fresh(self, batch: Batch, noise: NoiseSource) -> Iterator[Samples]:
        """Yield the images of `z_fake` in groups of the batch's size, each of a step of its own, without a graph."""
        size = len(batch.z)
        for group in range(0 if batch.z_fake is None else len(batch.z_fake) // size):
            rows, step = slice(group * size, (group + 1) * size), batch.steps[1 + group] if batch.steps else 0
            cond = None if batch.cond_fake is None else batch.cond_fake[rows]
            with torch.no_grad():
                images = self.generate(batch.z_fake[rows], cond, step, batch.real_images(1 + group), noise)  # type: ignore[index]
            yield images

    def generate(
        self, z: Tensor, cond: Condition | None, step: int, real: Samples | None, noise: NoiseSource
    ) -> Samples:
        """Generate the images of a step, of noise z. ValueError where its input needs data and has none."""
        if step and self.inputs == "data":
            if real is None:
                raise ValueError("the student's inputs are to be made of data, and the batch has no real images")
            cond = real.cond
            generator: Generator = self.generator  # type: ignore[assignment]
            t = z.new_full((len(z),), generator.timesteps[step])
            x = generator.denoiser.schedule.diffuse(real.x, z, t)
        else:
            x = self.simulate(z, cond, step, noise)
        images = self.generator(x, cond, step)
        return Samples(images, cond, len(images), time=self.generator.timesteps[step] if step else None)  # type: ignore[union-attr, index]

    @torch.no_grad()
    def simulate(self, z: Tensor, cond: Condition | None, step: int, noise: NoiseSource) -> Tensor:
        """Return the input of a step, as the steps before it make it.

        With the transition "sde", z is the noise of the last transition, as in the authors' code, and the generator
        starts from noise of its own; with "ode" it starts from z.
        """
        generator: Generator = self.generator  # type: ignore[assignment]
        if step == 0 or generator.transition == "ode":
            return generator.step_input(step, z, cond, lambda before: z)
        like = Samples(z, cond, len(z))
        start = gaussian(noise, like)
        return generator.step_input(
            step, start, cond, lambda before: z if before == step - 1 else gaussian(noise, like)
        )


def concat(cond: Condition | None, cond_ref: Condition | None) -> Condition | None:
    """Join the conditions of z and z_ref. ValueError where only one of them has any."""
    if (cond is None) != (cond_ref is None):
        raise ValueError("one of z and z_ref has conditions and the other has none, expected both or neither")
    return cond.concat(cond_ref) if cond is not None and cond_ref is not None else None

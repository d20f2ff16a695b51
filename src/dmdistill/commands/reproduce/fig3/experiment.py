"""Fig. 3: what the real score, the fake score and the regression are for, on a density of two modes.

The teacher is exact (`two_modes`), so what a student misses is the loss's doing. A generator that starts as a small
cloud beside one mode is moved by (a) the real score alone, (b) both scores, (c) both and the regression: Algorithm 1
each time, with another mu_fake or without pairs. How much noise the paper's plane has we do not know, and it decides
what (b) finds: see `merging`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmdistill.commands.reproduce.mlp_ensemble import MLPEnsemble
from dmdistill.core.denoisers import Condition, Denoiser, EDMDenoiser
from dmdistill.core.dmd import DMD
from dmdistill.core.generators import Generator
from dmdistill.core.losses import denoising_loss
from dmdistill.core.samples import Batch
from dmdistill.core.schedules import NoiseSchedule, expand
from dmdistill.core.solvers import heun
from dmdistill.models.gaussian_mixture import GaussianMixture, two_modes
from dmdistill.training.optimizer import NetworkOptimizer

__all__ = ["ALL", "LITTLE", "TRIALS", "Course", "Flat", "begin", "coverage", "merging", "train"]

LOSSES = {"a": "real score only", "b": "real and fake score", "c": "both scores and regression"}
LITTLE, ALL = 0.2, 0.98  # `high` of DMD: matching draws its times from .02 to there
TRIALS = [("a", LITTLE), ("b", LITTLE), ("c", LITTLE), ("b", 0.3), ("b", 0.35), ("b", 0.4)]
TRIALS += [("a", ALL), ("b", ALL), ("c", ALL)]
START, SPREAD = (-0.35, 0.45), 0.1  # middle of the cloud, nearer to the left mode, and its std
LAMBDA_REG = 1.0  # as `dmdistill distill` has it with the same distance
STEPS, WARM, COUNT = 1000, 400, 256  # updates, updates that make the start, samples in a batch
PAIRS, MEASURED, MOMENTS = 1024, 4096, 60
NEAR = 3  # a sample belongs to a mode within so many of its std: 98.9 % of the mode's own do


class Flat(Denoiser):
    """mu = x_t / alpha: a density equally high everywhere, whose score (Eq. 5) is zero. It learns nothing.

    As mu_fake it leaves the real score alone in Eq. 7: mu_fake - mu_real = -sigma^2/alpha s_real.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__(nn.Identity(), schedule)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return x_t / expand(self.schedule.alpha(t), x_t)

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Start:
    """What all trainings have in common. z_ref, y_ref: (pairs, seeds, 2), the teacher's pairs of each seed."""

    real: GaussianMixture
    generator: Generator
    fake: Denoiser
    z_ref: Tensor
    y_ref: Tensor


@dataclass(frozen=True)
class Course:
    """One training in every seed.

    paths: where some samples were, (moments, n, seeds, 2). samples: at the end, (n, seeds, 2).
    """

    schedules: Tensor
    samples: Tensor


def merging(real: GaussianMixture) -> float:
    """The sigma from which two equal modes, diffused, are one hump: half of what is between them is then their std."""
    half = (real.means[1] - real.means[0]).norm().item() / 2
    return math.sqrt(half**2 - real.stds[0].item() ** 2)


def begin(seeds: int, rng: torch.Generator) -> Start:
    """Generators that make the cloud, fake scores that know it, and the teacher's pairs."""
    real = two_modes().to(rng.device)
    generator, fake = Generator(student(seeds, rng, real.schedule)), student(seeds, rng, real.schedule)
    place, learn = (
        NetworkOptimizer(net, lr=3e-3, steps=WARM, warmup=0, decay=True, clip=math.inf) for net in (generator, fake)
    )
    middle = torch.tensor(START, device=rng.device)
    for _ in range(WARM):
        z, x = points(COUNT, seeds, rng), middle + SPREAD * points(COUNT, seeds, rng)
        place((generator(z) - middle - SPREAD * z).square().mean())
        learn(denoising_loss(fake, x, real.schedule.sample_t(len(x), rng=rng), points(COUNT, seeds, rng)))
    z_ref = points(PAIRS, seeds, rng)
    y_ref = heun(real, z_ref, steps=18)
    return Start(real, generator, fake, *(each.unflatten(0, (PAIRS, seeds)) for each in (z_ref, y_ref)))


def student(seeds: int, rng: torch.Generator, schedule: NoiseSchedule) -> Denoiser:
    return EDMDenoiser(MLPEnsemble(seeds, rng), schedule)


def train(start: Start, loss: str, high: float, *, steps: int) -> Course:
    """Algorithm 1 from the start: (a) has no fake score to learn, (c) alone has pairs."""
    seeds, rng = start.z_ref.shape[1], torch.Generator(start.z_ref.device).manual_seed(1)
    generator, fake = copy.deepcopy(start.generator), copy.deepcopy(start.fake)
    move = NetworkOptimizer(
        generator, lr=1e-3, steps=steps, warmup=100, decay=True, clip=math.inf
    )  # a clip would join the seeds
    learn = NetworkOptimizer(fake, lr=2e-3, steps=steps, warmup=0, clip=math.inf)
    if loss == "a":
        fake, learn = Flat(start.real.schedule), lambda _: None
    dmd = DMD(generator, start.real, fake, rng=rng, lambda_reg=LAMBDA_REG, high=high)
    followed, moments = points(COUNT, seeds, rng), set(torch.linspace(0, steps, MOMENTS).round().int().tolist())
    schedules = []
    for step in range(steps + 1):
        if step in moments:
            schedules.append(look(generator, followed, seeds))
        if step < steps:
            dmd.step(batch(start, rng, pairs=loss == "c"), move, learn)
    return Course(torch.stack(schedules), look(generator, points(MEASURED, seeds, rng), seeds))


def batch(start: Start, rng: torch.Generator, *, pairs: bool) -> Batch:
    seeds = start.z_ref.shape[1]
    z = points(COUNT, seeds, rng)
    if not pairs:
        return Batch(z)
    rows = torch.randint(PAIRS, (COUNT,), generator=rng, device=rng.device)
    return Batch(z, z_ref=start.z_ref[rows].flatten(0, 1), y_ref=start.y_ref[rows].flatten(0, 1))


def points(count: int, seeds: int, rng: torch.Generator) -> Tensor:
    """Normal noise for every seed in turn: (count seeds, 2)."""
    return torch.randn(count * seeds, 2, generator=rng, device=rng.device)


@torch.no_grad()
def look(generator: Generator, z: Tensor, seeds: int) -> Tensor:
    return generator(z).unflatten(0, (-1, seeds)).cpu()


def coverage(samples: Tensor, real: GaussianMixture) -> dict[str, float | None]:
    """Of samples (n, 2): each mode's share, and their std in it over the mode's own; then the std of all.

    None is the std in a mode of less than 1 % of the samples.
    """
    distance, mode = torch.cdist(samples, real.means.float()).min(1)
    figures: dict[str, float | None] = {}
    for i, name in enumerate(("left", "right")):
        own = samples[(mode == i) & (distance < NEAR * real.stds[i])]
        share = len(own) / len(samples)
        figures[f"share {name}"] = share
        figures[f"std {name}"] = (own.std(0).mean() / real.stds[i]).item() if share >= 0.01 else None
    return figures | {"std of all": samples.var(0).mean().sqrt().item()}

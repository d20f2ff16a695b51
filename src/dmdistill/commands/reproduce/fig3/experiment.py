"""Fig. 3: the roles of the real score, the fake score and the regression, on a density of two modes.

The teacher is exact (`two_modes`), so whatever a student misses is due to its loss. A generator that starts as a small
cloud beside one mode is trained by (a) the real score only, (b) both scores, (c) both scores and the regression. The
paper does not state the noise levels of its figure, and they decide what (b) finds: see `merging_sigma`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmdistill.commands.reproduce.fig3.mlp_ensemble import MLPEnsemble
from dmdistill.core.denoisers import Condition, Denoiser, EDMDenoiser
from dmdistill.core.generators import Generator
from dmdistill.core.losses import denoising_loss
from dmdistill.core.methods import dmd
from dmdistill.core.noise import RandomNoise
from dmdistill.core.objective import Update
from dmdistill.core.samples import Batch
from dmdistill.core.schedules import NoiseSchedule, expand
from dmdistill.core.solvers import heun
from dmdistill.core.times import UniformTimes
from dmdistill.models.gaussian_mixture import GaussianMixture, two_modes
from dmdistill.training.optimizer import NetworkOptimizer

LOSSES = {"a": "real score only", "b": "real and fake score", "c": "both scores and regression"}
LOW_NOISE, FULL_RANGE = 0.2, 0.98  # upper end of the time range of distribution matching; the lower end is 0.02
TRIALS = [("a", LOW_NOISE), ("b", LOW_NOISE), ("c", LOW_NOISE), ("b", 0.3), ("b", 0.35), ("b", 0.4)]
TRIALS += [("a", FULL_RANGE), ("b", FULL_RANGE), ("c", FULL_RANGE)]
START_MEAN, START_STD = (-0.35, 0.45), 0.1  # of the cloud, which is nearer to the left mode
LAMBDA_REG = 1.0  # the default of `dmdistill distill` for this distance
STEPS, START_STEPS, BATCH = 1000, 400, 256
PAIRS, FINAL_SAMPLES, SNAPSHOTS = 1024, 4096, 60
MODE_RADIUS = 3  # in std of a mode: holds 98.9 % of its samples


class ZeroScore(Denoiser):
    """The posterior mean of an infinitely wide flat density, mu = x_t / alpha, whose score (Eq. 5) is zero.

    As mu_fake it leaves the real score only in Eq. 7: mu_fake - mu_real = -sigma^2/alpha s_real.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__(nn.Identity(), schedule)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return x_t / alpha."""
        return x_t / expand(self.schedule.alpha(t), x_t)

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight 1 of the denoising loss, which has nothing to train here."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class InitialState:
    """The state that every training run starts from, with all seeds side by side.

    Attributes:
        fake: mu_fake, trained on the generator's cloud.
        z_ref: noise of the pairs of each seed, (pairs, seeds, 2).
        y_ref: its images, of the same shape.
    """

    real: GaussianMixture
    generator: Generator
    fake: Denoiser
    z_ref: Tensor
    y_ref: Tensor

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return self.z_ref.shape[1]


@dataclass(frozen=True)
class Trajectory:
    """The generator's samples of the same noise at steps from 0 to the last, and fresh samples at the end."""

    snapshots: Tensor  # snapshots, n, seeds, 2
    samples: Tensor  # n, seeds, 2


def merging_sigma(real: GaussianMixture) -> float:
    """Return the sigma from which two equal diffused modes merge into one: half their distance is then their std."""
    half = (real.means[1] - real.means[0]).norm().item() / 2
    return math.sqrt(half**2 - real.stds[0].item() ** 2)


def initialize(seeds: int, rng: torch.Generator) -> InitialState:
    """Train generators to produce the initial cloud and fake scores to match it, and solve the teacher's pairs."""
    real = two_modes().to(rng.device)
    generator, fake = Generator(new_denoiser(seeds, rng, real.schedule)), new_denoiser(seeds, rng, real.schedule)
    update_generator, update_fake = (
        NetworkOptimizer(net, lr=3e-3, steps=START_STEPS, warmup=0, decay=True, clip=math.inf)
        for net in (generator, fake)
    )
    mean = torch.tensor(START_MEAN, device=rng.device)
    for _ in range(START_STEPS):
        z, x = draw_noise(BATCH, seeds, rng), mean + START_STD * draw_noise(BATCH, seeds, rng)
        update_generator((generator(z) - mean - START_STD * z).square().mean())
        t, eps = real.schedule.sample_t(len(x), rng=rng), draw_noise(BATCH, seeds, rng)
        update_fake(denoising_loss(fake, x, t, eps))
    z_ref = draw_noise(PAIRS, seeds, rng)
    y_ref = heun(real, z_ref, steps=18)
    return InitialState(real, generator, fake, *(each.unflatten(0, (PAIRS, seeds)) for each in (z_ref, y_ref)))


def new_denoiser(seeds: int, rng: torch.Generator, schedule: NoiseSchedule) -> Denoiser:
    """Build untrained denoisers, one for each seed."""
    return EDMDenoiser(MLPEnsemble(seeds, rng), schedule)


def train(initial: InitialState, loss: str, high: float, *, steps: int) -> Trajectory:
    """Run DMD with one of `LOSSES`, on the fractions .02 to `high` of the time range."""
    seeds, rng = initial.seeds, torch.Generator(initial.z_ref.device).manual_seed(1)
    generator, fake = copy.deepcopy(initial.generator), copy.deepcopy(initial.fake)
    updates: dict[str, Update] = {  # clipping a gradient's norm would couple the seeds
        "generator": NetworkOptimizer(generator, lr=1e-3, steps=steps, warmup=100, decay=True, clip=math.inf),
        "fake": NetworkOptimizer(fake, lr=2e-3, steps=steps, warmup=0, clip=math.inf),
    }
    if loss == "a":
        fake, updates["fake"] = ZeroScore(initial.real.schedule), lambda _: None
    lambda_reg = LAMBDA_REG if loss == "c" else 0.0
    objective = dmd(generator, initial.real, fake, lambda_reg=lambda_reg, times=UniformTimes(0.02, high))
    z, noise = draw_noise(BATCH, seeds, rng), RandomNoise(rng)
    snapshot_steps = set(torch.linspace(0, steps, SNAPSHOTS).round().int().tolist())
    snapshots = []
    for step in range(steps + 1):
        if step in snapshot_steps:
            snapshots.append(generate(generator, z, seeds))
        if step < steps:
            objective.step(draw_batch(initial, rng, pairs=loss == "c"), noise, updates)
    return Trajectory(torch.stack(snapshots), generate(generator, draw_noise(FINAL_SAMPLES, seeds, rng), seeds))


def draw_batch(initial: InitialState, rng: torch.Generator, *, pairs: bool) -> Batch:
    """Draw the noise of one iteration, and the same rows of every seed's pairs."""
    z = draw_noise(BATCH, initial.seeds, rng)
    if not pairs:
        return Batch(z)
    rows = torch.randint(PAIRS, (BATCH,), generator=rng, device=rng.device)
    return Batch(z, z_ref=initial.z_ref[rows].flatten(0, 1), y_ref=initial.y_ref[rows].flatten(0, 1))


def draw_noise(count: int, seeds: int, rng: torch.Generator) -> Tensor:
    """Draw standard normal points, the seeds in turn: (count seeds, 2)."""
    return torch.randn(count * seeds, 2, generator=rng, device=rng.device)


@torch.no_grad()
def generate(generator: Generator, z: Tensor, seeds: int) -> Tensor:
    """Sample the generators of all seeds: (n, seeds, 2) on the CPU."""
    return generator(z).unflatten(0, (-1, seeds)).cpu()


def mode_coverage(samples: Tensor, real: GaussianMixture) -> dict[str, float | None]:
    """Measure how samples (n, 2) cover the two modes.

    Returns each mode's share of the samples and their std over the mode's own (None below 1 % of the samples), then
    the std of all samples.
    """
    distance, mode = torch.cdist(samples, real.means.float()).min(1)
    coverage: dict[str, float | None] = {}
    for i, name in enumerate(("left", "right")):
        own = samples[(mode == i) & (distance < MODE_RADIUS * real.stds[i])]
        share = len(own) / len(samples)
        coverage[f"share {name}"] = share
        coverage[f"std {name}"] = (own.std(0).mean() / real.stds[i]).item() if share >= 0.01 else None
    return coverage | {"std of all": samples.var(0).mean().sqrt().item()}

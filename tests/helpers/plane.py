"""Distillation in the plane: a mixture of modes on a circle, small networks, and what a student is measured by."""

import torch
from torch import nn

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.losses import denoising_loss

COUNT = 256  # samples in a batch of the distillation
MODES, STD = 6, 0.08


class MLP(nn.Module):
    """A network for the plane, of the same signature as a U-Net's; it keeps what it was asked."""

    def __init__(self, width=128, *, classes=0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 + classes, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )
        self.asked = []

    def forward(self, x_t, t, cond=None):
        self.asked.append(len(x_t))
        told = [] if cond is None else [cond.one_hot]
        return self.layers(torch.cat([x_t, t[:, None], *told], 1))


def pretrain(real, rng, *, steps=400, labels=None, classes=0):
    """A student that knows the teacher as a diffusion model: EDM's training, on samples of the mixture.

    labels: draws conditions of so many samples; None for an unconditional one. classes: how many there are.
    """
    base = EDMDenoiser(MLP(classes=classes), real.schedule)
    optimiser = torch.optim.Adam(base.parameters(), 2e-3)
    for _ in range(steps):
        cond = labels(COUNT, rng) if labels else None
        x = real.sample(COUNT, rng, cond=cond)
        t, eps = real.schedule.sample_t(COUNT, rng=rng), torch.randn(x.shape, generator=rng)
        updater(optimiser)(denoising_loss(base, x, t, eps, cond))
    return base


def updater(optimiser, schedule=None):
    def update(loss):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()

    return update


def sliced_wasserstein(x, y, rng):
    """Mean over 64 directions of the distance between sorted shadows. x, y: n D."""
    directions = torch.randn(x.shape[1], 64, generator=rng)
    directions = directions / directions.norm(dim=0)
    return ((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean().item()


def measure(generator, real, *, labels=None):
    """Sliced Wasserstein distance to the mixture, and each mode's share of the samples within 4 of its std."""
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        x = generator.sample(torch.randn(4096, 2, generator=rng), labels(4096, rng) if labels else None)
    distance, mode = torch.cdist(x, real.means.float()).min(1)
    share = mode[distance < 4 * STD].bincount(minlength=MODES) / len(x)
    return sliced_wasserstein(x, real.sample(4096, rng), rng), share

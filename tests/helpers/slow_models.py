"""Models whose passes take a known time on a clock of their own."""

import torch
from torch import nn

from dmdistill.core.denoisers import FlowDenoiser
from dmdistill.core.schedules import Flow
from dmdistill.data.conditions import LabelSpace


class FakeClock:
    """A clock that only networks advance."""

    now = 0.0

    def __call__(self):
        return self.now


class SlowNet(nn.Module):
    """A network whose pass takes 10 s on a fake clock, and 1 s more for each sample."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.precisions = clock, []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, noise, cond=None):
        self.clock.now += 10 + len(x)
        self.precisions.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return self.scale * x


class SlowDenoiser(FlowDenoiser):
    """A denoiser that adds 1.1 s to each pass."""

    def forward(self, x_t, t, cond=None):
        self.net.clock.now += 1.1
        return super().forward(x_t, t, cond)


class SlowAutoencoder:
    """Decodes in 7 s."""

    def __init__(self, clock):
        self.clock = clock

    def decode(self, latents):
        self.clock.now += 7
        return latents

    def to(self, device):
        return self


def slow(kind, clock, **fields):
    denoiser, classes = SlowDenoiser(SlowNet(clock), Flow()), LabelSpace(("ant", "bee"))
    return kind(name=kind.__name__, denoiser=denoiser, shape=(3, 4, 6), conditions=classes, **fields)

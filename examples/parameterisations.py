"""The Fashion-MNIST teacher as four kinds of network: one model under four parameterisations, on three paths.

    dmdistill distill --teacher examples.parameterisations:velocity --out runs/velocity

Each function is a teacher for `--teacher`. It shows what bringing a model of one's own takes: a network, its path, and
the denoiser that says what the network predicts.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dmdistill import load_teacher
from dmdistill.core.denoisers import Condition, Denoiser, EpsDenoiser, FlowDenoiser, VDenoiser
from dmdistill.core.schedules import VP, Flow, NoiseSchedule, expand
from dmdistill.models.model import Teacher


class Reexpressed(nn.Module):
    """A network that predicts eps, v or the flow's velocity, from the bundled one, which is asked on its own path."""

    def __init__(self, denoiser: Denoiser, schedule: NoiseSchedule, predicts: str) -> None:
        super().__init__()
        self.denoiser, self.schedule, self.predicts = denoiser, schedule, predicts

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        noise = (sigma / alpha).clamp(max=80.0)  # x_t/alpha is the image with noise of this size; 80 is all noise
        mu = self.denoiser(x_t * expand(noise / sigma, x_t), noise, cond)
        alpha, sigma = expand(alpha, x_t), expand(sigma, x_t)
        eps = (x_t - alpha * mu) / sigma
        return {"eps": eps, "v": alpha * eps - sigma * mu, "velocity": eps - mu}[self.predicts]


def edm() -> Teacher:
    """As bundled: EDM's preconditioning."""
    return load_teacher("fashion")


def eps() -> Teacher:
    """Predicts the noise, on DDPM's path."""
    return reexpressed(EpsDenoiser, VP.linear_betas(), "eps")


def v() -> Teacher:
    """Predicts v, on DDPM's path."""
    return reexpressed(VDenoiser, VP.linear_betas(), "v")


def velocity() -> Teacher:
    """Predicts the velocity of a rectified flow; its grid is shifted towards noise, as for larger images."""
    return reexpressed(FlowDenoiser, Flow(shift=6.0), "velocity")


def reexpressed(kind: type[Denoiser], schedule: NoiseSchedule, predicts: str) -> Teacher:
    teacher = load_teacher("fashion")
    return dataclasses.replace(
        teacher,
        name=f"fashion-{predicts}",
        denoiser=kind(Reexpressed(teacher.denoiser, schedule, predicts), schedule),
        solver="heun",
        steps=18,
        config={},
    )


if __name__ == "__main__":
    teachers = [edm(), eps(), v(), velocity()]
    z, index = teachers[0].sample_noise(8, rng=torch.Generator().manual_seed(0))
    images = [teacher.images(z, teacher.condition(index)) for teacher in teachers]
    for teacher, own in zip(teachers, images, strict=True):
        print(f"{teacher.name}: {(own - images[0]).abs().mean():.4f} from the bundled teacher's images, on average")

"""The Fashion-MNIST teacher as four kinds of network: one model under four parameterisations, on three noise schedules.

    dmdistill distill --teacher examples.parameterisations:velocity --out runs/velocity

Each function is a teacher for `--teacher`. It shows what bringing your own model takes: a network, its noise schedule,
and the denoiser for what the network predicts.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dmdistill import VP, Denoiser, EpsDenoiser, Flow, FlowDenoiser, NoiseSchedule, Teacher, VDenoiser, load_teacher
from dmdistill.core.denoisers import Condition
from dmdistill.core.schedules import expand


class Reparameterisation(nn.Module):
    """A network that predicts eps, v or a flow's velocity, computed from the bundled teacher's denoised image.

    Args:
        denoiser: the bundled teacher's, evaluated on its own noise schedule.
        schedule: of this network.
        prediction: eps, v or velocity.
    """

    def __init__(self, denoiser: Denoiser, schedule: NoiseSchedule, prediction: str) -> None:
        super().__init__()
        self.denoiser, self.schedule, self.prediction = denoiser, schedule, prediction

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Return the prediction for x_t (B C H W) at timesteps t (B)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        noise = (sigma / alpha).clamp(max=80.0)  # x_t/alpha is the image with noise of this size; 80 is pure noise
        mu = self.denoiser(x_t * expand(noise / sigma, x_t), noise, cond)
        alpha, sigma = expand(alpha, x_t), expand(sigma, x_t)
        eps = (x_t - alpha * mu) / sigma
        return {"eps": eps, "v": alpha * eps - sigma * mu, "velocity": eps - mu}[self.prediction]


def edm() -> Teacher:
    """Return the teacher as it is bundled: EDM's preconditioning."""
    return load_teacher("fashion")


def eps() -> Teacher:
    """Return a teacher that predicts the noise, on DDPM's schedule."""
    return reparameterise(EpsDenoiser, VP.linear_betas(), "eps")


def v() -> Teacher:
    """Return a teacher that predicts v, on DDPM's schedule."""
    return reparameterise(VDenoiser, VP.linear_betas(), "v")


def velocity() -> Teacher:
    """Return a teacher that predicts a flow's velocity; its timesteps are shifted to noise, as for larger images."""
    return reparameterise(FlowDenoiser, Flow(shift=6.0), "velocity")


def reparameterise(denoiser: type[Denoiser], schedule: NoiseSchedule, prediction: str) -> Teacher:
    """Return the bundled teacher with another prediction, on another noise schedule."""
    teacher = load_teacher("fashion")
    network = Reparameterisation(teacher.denoiser, schedule, prediction)
    return dataclasses.replace(
        teacher,
        name=f"fashion-{prediction}",
        denoiser=denoiser(network, schedule),
        solver="heun",
        steps=18,
        config={},
    )


if __name__ == "__main__":
    teachers = [edm(), eps(), v(), velocity()]
    z, cond = teachers[0].sample_inputs(8, rng=torch.Generator().manual_seed(0))
    images = [teacher.images(z, cond) for teacher in teachers]
    for teacher, own in zip(teachers, images, strict=True):
        print(f"{teacher.name}: {(own - images[0]).abs().mean():.4f} from the bundled teacher's images, on average")

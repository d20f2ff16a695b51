"""Deterministic solvers of the probability-flow ODE: noise to image, to make pairs and the teacher's own samples.

With mu the denoised image and eps = (x_t - alpha mu)/sigma the noise that goes with it, x_t = alpha mu + sigma eps, and
the flow is dx = mu dalpha + eps dsigma on every path. DDIM is Euler's step in these terms, and Heun's the trapezium.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser

__all__ = ["SOLVERS", "Solver", "ddim", "dpmpp", "evaluations", "heun", "pndm"]


class Solver(Protocol):
    """A deterministic solver of the probability-flow ODE."""

    def __call__(self, denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, steps: int = 18) -> Tensor:
        """Return images (B ...) of noise z ~ N(0, I) of that shape. ValueError for steps that it cannot take."""
        ...


class Trajectory:
    """The path of one solve: the grid's coefficients, and the denoiser at its times."""

    def __init__(self, denoiser: Denoiser, z: Tensor, cond: Condition | None, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"{steps} solver steps, expected at least 1")
        self.denoiser, self.cond = denoiser, cond
        times = denoiser.schedule.solver_times(steps).to(z.device)
        self.t = times.to(z.dtype)
        self.alpha = denoiser.schedule.alpha(times).to(z.dtype)
        self.sigma = denoiser.schedule.sigma(times).to(z.dtype)
        self.x = denoiser.schedule.prior_std * z

    def evaluate(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Return (mu, eps) of x at the i-th time."""
        mu = self.denoiser(x, self.t[i].expand(len(x)), self.cond)
        return mu, (x - self.alpha[i] * mu) / self.sigma[i]

    def step(self, x: Tensor, mu: Tensor, eps: Tensor, i: int) -> Tensor:
        """Return x of the i-th time, moved along (mu, eps) to the next."""
        return x + (self.alpha[i + 1] - self.alpha[i]) * mu + (self.sigma[i + 1] - self.sigma[i]) * eps


@torch.no_grad()
def ddim(denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, steps: int = 50) -> Tensor:
    """Sample with DDIM (Song et al. 2021): first order, `steps` evaluations. Arguments are those of `Solver`."""
    path = Trajectory(denoiser, z, cond, steps)
    x = path.x
    for i in range(steps):
        x = path.step(x, *path.evaluate(x, i), i)
    return x


@torch.no_grad()
def heun(denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, steps: int = 18) -> Tensor:
    """Sample with Heun's method (Karras et al. 2022, algorithm 1, S_churn 0): second order, 2 steps - 1 evaluations.

    Arguments are those of `Solver`.
    """
    path = Trajectory(denoiser, z, cond, steps)
    x = path.x
    for i in range(steps):
        mu, eps = path.evaluate(x, i)
        ahead = path.step(x, mu, eps, i)
        if i + 1 < steps:  # at the clean image there is no eps to ask for: the last step is Euler's
            mu_ahead, eps_ahead = path.evaluate(ahead, i + 1)
            ahead = path.step(x, (mu + mu_ahead) / 2, (eps + eps_ahead) / 2, i)
        x = ahead
    return x


@torch.no_grad()
def dpmpp(denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, steps: int = 18) -> Tensor:
    """Sample with DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, `steps` evaluations.

    Each step is DDIM's with mu extrapolated from the last two; the first and the last one take mu as it is.
    Arguments are those of `Solver`.
    """
    path = Trajectory(denoiser, z, cond, steps)
    h = (path.alpha / path.sigma).log().diff()  # infinite in a step from noise alone, and in the one to the clean image
    x = past = path.x
    for i in range(steps):
        mu, eps = path.evaluate(x, i)
        if 0 < i < steps - 1:
            ahead = mu + (mu - past) * (h[i] / (2 * h[i - 1]))
            x = path.step(x, ahead, (x - path.alpha[i] * ahead) / path.sigma[i], i)
        else:
            x = path.step(x, mu, eps, i)
        past = mu
    return x


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@torch.no_grad()
def pndm(denoiser: Denoiser, z: Tensor, cond: Condition | None = None, *, steps: int = 50) -> Tensor:
    """Sample with PNDM in its linear multi-step form (Liu et al. 2022), as for Stable Diffusion: steps + 1 evaluations.

    The noise of the last four steps, extrapolated by Adams-Bashforth, makes each DDIM step; the first step is a
    trapezium, for which the denoiser is evaluated at the second time once more. Arguments are
    those of `Solver`. ValueError on a noise schedule that starts at alpha = 0, too.
    """
    path = Trajectory(denoiser, z, cond, steps)
    if path.alpha[0] == 0:
        raise ValueError(
            "pndm on a noise schedule that starts at alpha = 0, where noise alone gives no image: use heun or ddim"
        )
    x, past = path.x, []
    for i in range(steps):
        _, eps = path.evaluate(x, i)
        past = [eps, *past[:3]]
        if i == 0 and steps > 1:
            _, ahead = path.evaluate(step_along_noise(path, x, eps, 0), 1)
            eps = (eps + ahead) / 2
        else:
            eps = sum((c * e for c, e in zip(ADAMS_BASHFORTH[len(past) - 1], past, strict=True)), torch.zeros_like(x))
        x = step_along_noise(path, x, eps, i)
    return x


def step_along_noise(path: Trajectory, x: Tensor, eps: Tensor, i: int) -> Tensor:
    """Take DDIM's step for a given noise: mu is what that noise leaves of x."""
    return path.step(x, (x - path.sigma[i] * eps) / path.alpha[i], eps, i)


SOLVERS: dict[str, Solver] = {"heun": heun, "dpmpp": dpmpp, "ddim": ddim, "pndm": pndm}


def evaluations(solver: str, steps: int) -> int:
    """Count a solver's evaluations of the denoiser for one image."""
    return {"heun": 2 * steps - 1, "dpmpp": steps, "ddim": steps, "pndm": steps + (steps > 1)}[solver]

"""The three losses: pure functions of images, times and noise, one equation each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser
from dmdistill.core.schedules import expand

__all__ = [
    "WEIGHTS",
    "Distance",
    "Weight",
    "denoising_loss",
    "distribution_matching_loss",
    "pseudo_huber",
    "regression_loss",
]

Distance = Callable[[Tensor, Tensor], Tensor]
"""(x, y), both B ..., -> one distance per sample, shape (B,)."""

Weight = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, mu_real, alpha, sigma) -> the factor on mu_fake - mu_real, one per sample, broadcasting over x."""

FLOOR = 1e-6  # of the normaliser: a sample the teacher finds perfect must not divide by zero


def weight_eq8(x: Tensor, mu_real: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 8: 1 / mean|x - mu_real|, the mean over each sample.

    In full w_t alpha_t^2/sigma_t^2 = alpha_t / mean|x - mu_real|; like the paper's own pseudo-code it leaves the
    alpha_t out, which is 1 for EDM.
    """
    error = (x - mu_real).abs().flatten(1).mean(1)
    return expand(1 / error.clamp(min=FLOOR), x)


def weight_sigma(x: Tensor, mu_real: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Table 3's w_t = sigma_t/alpha_t (DreamFusion's): w_t alpha_t^2/sigma_t^2 = alpha_t/sigma_t."""
    return alpha / sigma


def weight_sigma3(x: Tensor, mu_real: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Table 3's w_t = sigma_t^3/alpha_t (ProlificDreamer's): w_t alpha_t^2/sigma_t^2 = alpha_t sigma_t."""
    return alpha * sigma


WEIGHTS: dict[str, Weight] = {"eq8": weight_eq8, "sigma": weight_sigma, "sigma3": weight_sigma3}


def distribution_matching_loss(
    x: Tensor,
    real: Denoiser,
    fake: Denoiser,
    t: Tensor,
    eps: Tensor,
    cond: Condition | None = None,
    *,
    weight: Weight = weight_eq8,
) -> Tensor:
    """Eq. 7 and 8: a scalar whose gradient in x is weight * (mu_fake - mu_real) / numel(x).

    Args:
        x: generated images, B ..., in [-1, 1], with their graph to the generator.
        real, fake: mu_real and mu_fake; both are only asked, neither builds a graph.
        t, eps: times (B) and noise (shape of x) that diffuse x.
    """
    with torch.no_grad():
        x_t = real.schedule.diffuse(x, eps, t)
        mu_real, mu_fake = real(x_t, t, cond), fake(x_t, t, cond)
        alpha, sigma = expand(real.schedule.alpha(t), x), expand(real.schedule.sigma(t), x)
        grad = weight(x, mu_real, alpha, sigma) * (mu_fake - mu_real)
    return 0.5 * F.mse_loss(x, x.detach() - grad)


def denoising_loss(fake: Denoiser, x: Tensor, t: Tensor, eps: Tensor, cond: Condition | None = None) -> Tensor:
    """Eq. 6: mean of weight(t) |mu_fake(x_t, t) - x|^2, weighted as the base model was trained.

    Args:
        x: images, B ..., detached from their generator.
        t, eps: times (B) and noise (shape of x).
    """
    error = (fake(fake.schedule.diffuse(x, eps, t), t, cond) - x) ** 2
    return (expand(fake.weight(t), x) * error).mean()


def regression_loss(x_ref: Tensor, y_ref: Tensor, distance: Distance) -> Tensor:
    """Eq. 9: the mean distance between G(z_ref) and y_ref, the image the teacher's ODE makes of the same z_ref."""
    return distance(x_ref, y_ref).mean()


def pseudo_huber(x: Tensor, y: Tensor, *, c: float = 0.03) -> Tensor:
    """Pixels' mean of sqrt((x - y)^2 + c^2) - c: shape (B,). The distance where no perceptual weights are at hand."""
    return (((x - y) ** 2 + c**2).sqrt() - c).flatten(1).mean(1)

"""The losses of DMD: pure functions of images, times and noise, one equation each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmdistill.core.denoisers import Condition, Denoiser, GuidedDenoiser
from dmdistill.core.schedules import NoiseSchedule, expand

__all__ = [
    "WEIGHTS",
    "Distance",
    "Estimates",
    "Weight",
    "denoising_loss",
    "describe_output",
    "distribution_matching_loss",
    "gradient_in",
    "guidance_loss",
    "pseudo_huber",
    "regression_loss",
    "score_identity_loss",
]

Distance = Callable[[Tensor, Tensor], Tensor]
"""(x, y), both B ..., -> one distance per sample, shape (B,)."""


@dataclass(frozen=True)
class Estimates:
    """All that a weight of the distribution-matching gradient can depend on.

    Attributes:
        x: generated images, B .... x_t: the same, diffused. t: their times, (B,). cond: their conditions.
        mu_real, mu_fake: the denoisers' estimates of x, B ....
        alpha, sigma: the noise schedule at t, B 1 ... 1.
    """

    x: Tensor
    x_t: Tensor
    t: Tensor
    cond: Condition | None
    mu_real: Tensor
    mu_fake: Tensor
    alpha: Tensor
    sigma: Tensor


Weight = Callable[[Estimates], Tensor]
"""Estimates -> the factor on mu_fake - mu_real: one per sample, (B,), or of a shape that broadcasts over x."""

FLOOR = 1e-6  # of the normalizer: a sample that the teacher finds perfect must not divide by zero


def weight_eq8(at: Estimates) -> Tensor:
    """Return Eq. 8: 1 / mean|x - mu_real|, the mean over each sample.

    In full w_t alpha_t^2/sigma_t^2 = alpha_t / mean|x - mu_real|; like the paper's own pseudo-code it leaves the
    alpha_t out, which is 1 for EDM.
    """
    error = (at.x - at.mu_real).abs().flatten(1).mean(1)
    return expand(1 / error.clamp(min=FLOOR), at.x)


def weight_sigma(at: Estimates) -> Tensor:
    """Return table 3's w_t = sigma_t/alpha_t (DreamFusion's): w_t alpha_t^2/sigma_t^2 = alpha_t/sigma_t."""
    return at.alpha / at.sigma


def weight_sigma3(at: Estimates) -> Tensor:
    """Return table 3's w_t = sigma_t^3/alpha_t (ProlificDreamer's): w_t alpha_t^2/sigma_t^2 = alpha_t sigma_t."""
    return at.alpha * at.sigma


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
    """Return a scalar whose gradient in x is weight * (mu_fake - mu_real) / numel(x) (Eq. 7 and 8).

    Args:
        x: generated images, B ..., in [-1, 1], with their graph to the generator.
        real: mu_real; no graph is built through it.
        fake: mu_fake; no graph is built through it.
        t: times (B) that diffuse x.
        eps: noise (shape of x) that diffuses x.
        cond: conditions of x.
        weight: factor on the difference.
    """
    with torch.no_grad():
        x_t = real.schedule.diffuse(x, eps, t)
        mu_real, mu_fake = real(x_t, t, cond), fake(x_t, t, cond)
        at = Estimates(x.detach(), x_t, t, cond, mu_real, mu_fake, *coefficients(real.schedule, t, x))
    return matching_loss(x, at, weight)


def guidance_loss(
    x: Tensor,
    real: GuidedDenoiser,
    t: Tensor,
    eps: Tensor,
    cond: Condition | None = None,
    *,
    weight: Weight = weight_eq8,
) -> Tensor:
    """Return a scalar whose gradient in x is -weight * (scale - 1) (mu_cond - mu_null) / numel(x).

    It is the part of guided distribution matching that is due to guidance (Liu et al. 2025, "CFG augmentation"); the
    other one is `distribution_matching_loss` with the teacher unguided.

    Args:
        x: generated images, B ..., in [-1, 1], with their graph to the generator.
        real: mu_real, guided; no graph is built through it.
        t: times (B) that diffuse x.
        eps: noise (shape of x) that diffuses x.
        cond: conditions of x.
        weight: factor on the difference; its `mu_fake` is the estimate without a condition.
    """
    with torch.no_grad():
        x_t = real.schedule.diffuse(x, eps, t)
        mu_null, mu_cond = real.estimates(x_t, t, cond)
        at = Estimates(x.detach(), x_t, t, cond, mu_cond, mu_null, *coefficients(real.schedule, t, x))
    return matching_loss(x, at, weight, scale=real.scale - 1)


def matching_loss(x: Tensor, at: Estimates, weight: Weight, *, scale: float = 1.0) -> Tensor:
    """Return a scalar whose gradient in x is scale * weight * (mu_fake - mu_real) / numel(x)."""
    with torch.no_grad():
        grad = check_weight(weight(at), x) * (at.mu_fake - at.mu_real)
        target = x.detach() - (grad if scale == 1 else scale * grad)
    return 0.5 * F.mse_loss(x, target)


def check_weight(factor: Tensor, x: Tensor) -> Tensor:
    """Return a weight of the gradient in a shape that broadcasts over x. ValueError where it has another."""
    if not isinstance(factor, Tensor):
        raise ValueError(f"the weight returned {describe_output(factor)}, expected a tensor")
    if factor.shape == x.shape[:1]:
        return expand(factor, x)
    if factor.ndim == 1 or not broadcasts(factor, x):
        raise ValueError(
            f"the weight has shape {tuple(factor.shape)}, expected ({len(x)},), one per sample, or one that broadcasts "
            f"over {tuple(x.shape)}"
        )
    return factor


def describe_output(value: object) -> str:
    """Say what a function returned that was to return a tensor of another shape, for a message."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"an object of type {type(value).__name__}"


def broadcasts(factor: Tensor, x: Tensor) -> bool:
    """Whether a factor can be multiplied with x without making it larger."""
    try:
        return torch.broadcast_shapes(factor.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def coefficients(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at t (B), B 1 ... 1, to broadcast over x."""
    return expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)


def denoising_loss(fake: Denoiser, x: Tensor, t: Tensor, eps: Tensor, cond: Condition | None = None) -> Tensor:
    """Return the mean of weight(t) |mu_fake(x_t, t) - x|^2, weighted as the base model was trained (Eq. 6).

    Args:
        fake: mu_fake.
        x: images, B ..., detached from their generator.
        t: times (B).
        eps: noise (shape of x).
        cond: conditions of x.
    """
    error = (fake(fake.schedule.diffuse(x, eps, t), t, cond) - x) ** 2
    return (expand(fake.weight(t), x) * error).mean()


def regression_loss(x_ref: Tensor, y_ref: Tensor, distance: Distance) -> Tensor:
    """Return the mean distance of G(z_ref) to y_ref, the image that the teacher's ODE makes of z_ref (Eq. 9)."""
    distances = distance(x_ref, y_ref)
    if not isinstance(distances, Tensor):
        raise ValueError(f"the distance returned {describe_output(distances)}, expected a tensor")
    return distances.mean()


def gradient_in(x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return loss(x), a scalar whose gradient goes to x only: no parameter that the loss depends on gets any.

    Args:
        x: images, B ..., with their graph.
        loss: a scalar function of images, differentiated here: nothing of its graph stays.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach() + ((x - x.detach()) * gradient).sum()


def score_identity_loss(x: Tensor, mu_real: Tensor, mu_fake: Tensor, *, alpha: float) -> Tensor:
    """Return the loss of SiD per sample, (B,), the mean over its pixels (Zhou et al. 2024, Eq. 23).

    (mu_real - mu_fake) ((mu_real - x) - alpha (mu_real - mu_fake)) / mean|x - mu_real|: gradients pass through both
    means, not through the denominator.

    Args:
        x: generated images, B ....
        mu_real: the teacher's estimates of them, with their graph.
        mu_fake: the fake score's, with theirs.
        alpha: 1.2 or 1 in the paper.
    """
    gap = mu_real - mu_fake
    error = (gap * ((mu_real - x) - alpha * gap)).flatten(1).mean(1)
    return error / (x - mu_real).detach().abs().flatten(1).mean(1).clamp(min=1e-5)


def pseudo_huber(x: Tensor, y: Tensor, *, c: float = 0.03) -> Tensor:
    """Return the mean over pixels of sqrt((x - y)^2 + c^2) - c: shape (B,). It needs no perceptual network."""
    return (((x - y) ** 2 + c**2).sqrt() - c).flatten(1).mean(1)

"""The kernel Inception distance between two sets of images (Binkowski et al. 2018), of any features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["check_features", "kernel_inception_distance", "squared_discrepancy"]


def kernel_inception_distance(
    generated: Tensor, reference: Tensor, *, rng: torch.Generator, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """The mean of squared MMDs over random subsets, and its standard error. It is unbiased, so it may be below 0.

    generated, reference: N D and M D, on one device. rng: draws the subsets, each without replacement, on the CPU. The
    error is of the draw of subsets, not of the images. ValueError for fewer images than a subset has.
    """
    check_features(generated, reference, least=size, why="a subset of the kernel distance (kid_size)")
    if subsets < 2 or size < 2:
        raise ValueError(f"{subsets} subsets of {size} images, expected at least 2 of 2")
    values = torch.stack(
        [squared_discrepancy(*(draw(f, size, rng) for f in (generated, reference))) for _ in range(subsets)]
    )
    return float(values.mean()), float(values.std()) / math.sqrt(subsets)


def discrepancy_of_subsets(generated: Tensor, reference: Tensor, size: int, rng: torch.Generator) -> Tensor:
    return squared_discrepancy(draw(generated, size, rng), draw(reference, size, rng))


def draw(features: Tensor, size: int, rng: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=rng)[:size].to(features.device)]


def squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """MMD^2 of n and m samples, unbiased: none is compared with itself. fp64: a small difference of large sums."""
    x, y = x.double(), y.double()
    within = sum((polynomial(f, f).sum() - polynomial_diagonal(f).sum()) / (len(f) * (len(f) - 1)) for f in (x, y))
    return within - 2 * polynomial(x, y).mean()


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def polynomial_diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


def check_features(generated: Tensor, reference: Tensor, *, least: int, why: str) -> None:
    """ValueError where two sets are not N D and M D of the same network, are too small, or not finite."""
    for name, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2:
            raise ValueError(f"{name} features have shape {tuple(features.shape)}, expected (images, features)")
        if len(features) < least:
            raise ValueError(f"{len(features)} {name} images, {why} needs at least {least}")
        if not torch.isfinite(features).all():
            raise ValueError(f"the features of the {len(features)} {name} images hold NaN or infinity")
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(f"sets of {generated.shape[1]} and {reference.shape[1]} features, expected the same network's")

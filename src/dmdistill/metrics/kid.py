"""The kernel Inception distance between two sets of images (Binkowski et al. 2018), in any network's features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["check_features", "kernel_inception_distance", "squared_mmd"]


def kernel_inception_distance(
    generated: Tensor, reference: Tensor, *, rng: torch.Generator, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Compute the mean squared MMD of random subsets, and its standard error. It is unbiased, so it may be below 0.

    The error is of the draw of subsets, not of the images. ValueError for fewer images than a subset has.

    Args:
        generated: features, N D.
        reference: features, M D, on the same device.
        rng: draws the subsets, on the CPU, each without replacement.
        subsets: how many are drawn.
        subset_size: images in each.
    """
    check_features(generated, reference, least=subset_size, why="a subset of the kernel distance")
    if subsets < 2 or subset_size < 2:
        raise ValueError(f"{subsets} subsets of {subset_size} images, expected at least 2 of 2")
    values = torch.stack(
        [squared_mmd(*(draw_rows(f, subset_size, rng) for f in (generated, reference))) for _ in range(subsets)]
    )
    return float(values.mean()), float(values.std()) / math.sqrt(subsets)


def draw_rows(features: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw `count` rows without replacement."""
    return features[torch.randperm(len(features), generator=rng)[:count].to(features.device)]


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Compute the unbiased squared MMD of N D and M D samples with the kernel (x.y / D + 1)^3, in fp64."""
    x, y = x.double(), y.double()  # a small difference of large sums
    within = sum((kernel(f, f).sum() - kernel_diagonal(f).sum()) / (len(f) * (len(f) - 1)) for f in (x, y))
    return within - 2 * kernel(x, y).mean()


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Compute the kernel of all pairs."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_diagonal(x: Tensor) -> Tensor:
    """Compute the kernel of each sample and itself."""
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


def check_features(generated: Tensor, reference: Tensor, *, least: int, why: str) -> None:
    """Raise a ValueError where two sets are not N D and M D of one network, are too small, or not finite."""
    for name, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2:
            raise ValueError(f"{name} features have shape {tuple(features.shape)}, expected (images, features)")
        if len(features) < least:
            raise ValueError(f"{len(features)} {name} images, {why} needs at least {least}")
        if not torch.isfinite(features).all():
            raise ValueError(f"the features of the {len(features)} {name} images contain NaN or infinity")
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(f"sets of {generated.shape[1]} and {reference.shape[1]} features, expected one network's")

"""The Frechet distance between two sets of images, seen through a network's features (Heusel et al. 2017).

|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the 2-Wasserstein distance, squared, of the Gaussians with the
features' means m and covariances C. All of it is fp64. The distance is biased by the number of samples: compare only
distances from equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmdistill.files import read_safetensors, write_safetensors

__all__ = ["Statistics", "frechet_distance", "gather", "load_statistics", "save_statistics"]


@dataclass(frozen=True)
class Statistics:
    """What the distance knows of a set of images: fp64, on the CPU.

    mean: D. covariance: D D, unbiased (over count - 1). count: of the images.
    """

    mean: Tensor
    covariance: Tensor
    count: int


@torch.no_grad()
def gather(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Statistics:
    """Statistics of features(batch) (B D) over batches of images on any device; memory does not grow with their number.

    A network in training mode is the caller's mistake. ValueError for fewer than two images, or features that are
    not finite or not B D.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        f = features(batch)
        if f.ndim != 2:
            raise ValueError(f"features have shape {tuple(f.shape)}, expected (images, features)")
        f = f.to("cpu" if f.device.type == "mps" else f.device).double()  # MPS has no fp64
        count, total, products = count + len(f), total.to(f) + f.sum(0), products.to(f) + f.T @ f
    if count < 2:
        raise ValueError(f"{count} images, a covariance needs at least 2")
    mean = total / count
    covariance = (products - count * mean.outer(mean)) / (count - 1)
    if not torch.isfinite(covariance).all():
        raise ValueError(f"the features of {count} images hold NaN or infinity")
    return Statistics(mean.cpu(), covariance.cpu(), count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The distance, >= 0: 0 for the same statistics, of any rank. ValueError where the features' numbers differ.

    tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2). The usual way, the eigenvalues of
    C_a C_b, takes roots of rounding errors where a covariance lacks rank: errors of 1e-5 and, in places, NaN.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features, expected the same features")
    difference = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    overlap = torch.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum()
    return max(0.0, float(difference - 2 * overlap))


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues within rounding of 0 are 0."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1].abs()
    return vectors * torch.where(values > rounding, values, 0).sqrt() @ vectors.T


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write safetensors, whole or not at all."""
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance, "count": torch.tensor(statistics.count)}
    write_safetensors(path, tensors)


def load_statistics(path: Path) -> Statistics:
    """What `save_statistics` wrote. ValueError, naming the file, where it is missing, cut short or something else."""
    tensors = read_safetensors(path)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    features = len(tensors["mean"]) if "mean" in tensors and tensors["mean"].ndim else 0
    shapes = {"mean": (features,), "covariance": (features, features)}
    expected = {name: (shape, torch.float64) for name, shape in shapes.items()} | {"count": ((), torch.int64)}
    if found != expected:
        held = ", ".join(f"{name} {shape}" for name, (shape, _) in sorted(found.items()))
        raise ValueError(f"{path} holds {held or 'nothing'}, expected fp64 mean (D,), covariance (D, D) and count ()")
    return Statistics(tensors["mean"], tensors["covariance"], int(tensors["count"]))

"""The Frechet distance between two sets of images, seen through a network's features (Heusel et al. 2017).

|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the 2-Wasserstein distance, squared, of the Gaussians with the
features' means m and covariances C. All of it is fp64. The distance is biased by the number of samples: compare only
distances from equally many.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.io.errors import first_line

__all__ = [
    "Moments",
    "Statistics",
    "accumulate_moments",
    "frechet_distance",
    "gather",
    "load_edm_statistics",
    "load_statistics",
    "save_statistics",
]

DAMAGE = (AttributeError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)  # what numpy raises for other files


@dataclass(frozen=True)
class Statistics:
    """What the distance knows of a set of images: fp64, on the CPU.

    mean: D. covariance: D D, unbiased (over count - 1). count: of the images; None where a file does not tell.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None


@dataclass
class Moments:
    """The sums that statistics are made of, fp64: of batch after batch, and of processes' shares by `+`.

    count: of the images. total: D, the features' sum. products: D D, the sum of their outer products. They stay on the
    device of the features (MPS, which has no fp64, aside).
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, features: Tensor) -> None:
        """Features, B D, of B more images. ValueError where they are not B D, of another D, or not finite."""
        if features.ndim != 2:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected (images, features)")
        if self.count and features.shape[1] != len(self.total):
            raise ValueError(f"{features.shape[1]} features of an image after {len(self.total)}: one set, one network")
        if not torch.isfinite(features).all():
            raise ValueError(f"the features of {len(features)} images hold NaN or infinity")
        f = features.detach().to("cpu" if features.device.type == "mps" else features.device).double()
        self.count += len(f)
        self.total = self.total.to(f) + f.sum(0)
        self.products = self.products.to(f) + f.T @ f

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together. ValueError where their features differ in number."""
        if self.count and other.count and len(self.total) != len(other.total):
            raise ValueError(
                f"sums of {len(self.total)} and of {len(other.total)} features, expected the same features"
            )
        mine, theirs = (sums if sums.count else Moments() for sums in (self, other))
        total, products = mine.total.double().cpu(), mine.products.double().cpu()
        return Moments(mine.count + theirs.count, total + theirs.total.cpu(), products + theirs.products.cpu())

    def statistics(self) -> Statistics:
        """ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"{self.count} images, a covariance needs at least 2")
        mean = self.total / self.count
        covariance = (self.products - self.count * mean.outer(mean)) / (self.count - 1)
        return Statistics(mean.cpu(), covariance.cpu(), self.count)


@torch.no_grad()
def gather(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Statistics:
    """Statistics of features(batch) (B D) over batches of images on any device; memory does not grow with their number.

    A network in training mode is the caller's mistake. ValueError for fewer than two images, or features that are
    not finite or not B D.
    """
    return accumulate_moments(features, batches).statistics()


@torch.no_grad()
def accumulate_moments(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Moments:
    """The sums of one process's share of the images, from which `gather` makes statistics."""
    moments = Moments()
    for batch in batches:
        moments.add(features(batch))
    return moments


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
    """Write safetensors, whole or not at all. A count that is not known is 0."""
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    tensors["count"] = torch.tensor(statistics.count or 0)
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
    return Statistics(tensors["mean"], tensors["covariance"], int(tensors["count"]) or None)


def load_edm_statistics(path: Path) -> Statistics:
    """A reference of EDM's: an .npz with mu (D) and sigma (D D). Its count is not known; nothing in it is unpickled.

    ValueError, naming the file, where it is missing, cut short or something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as found:
            mean, covariance = (torch.from_numpy(np.asarray(found[name], np.float64)) for name in ("mu", "sigma"))
    except (
        AttributeError,
        EOFError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} is damaged, or no .npz with mu and sigma: {first_line(error)}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        raise ValueError(f"{path} holds {shapes}, expected (D,) and (D, D)")
    if not torch.isfinite(mean).all() or not torch.isfinite(covariance).all():
        raise ValueError(f"{path} holds NaN or infinity")
    return Statistics(mean, covariance, None)

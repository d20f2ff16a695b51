"""The Frechet distance between the features of two sets of images (Heusel et al. 2017).

|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the squared 2-Wasserstein distance between the Gaussians with the
features' means m and covariances C. In Inception's features it is FID. All of it is computed in fp64. The distance is
biased by the number of samples: compare only distances from equally many.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.io.errors import first_line
from dmdistill.io.limits import check_expansion

__all__ = [
    "Moments",
    "Statistics",
    "accumulate_moments",
    "frechet_distance",
    "load_edm_statistics",
    "load_statistics",
    "save_statistics",
]


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of a set of images: fp64, on the CPU.

    Attributes:
        mean: D.
        covariance: D D, unbiased (over count - 1).
        count: number of images; None where a file does not say.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    @cached_property
    def root(self) -> Tensor:
        """The symmetric root of the covariance, D D."""
        return matrix_sqrt(self.covariance)


@dataclass
class Moments:
    """Sums in fp64 from which statistics are computed; sums of different batches or processes are added by `+`.

    They stay on the features' device (but for MPS, which has no fp64).

    Attributes:
        count: number of images.
        total: D, the sum of the features.
        products: D D, the sum of their outer products.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, features: Tensor) -> None:
        """Add features, B D. ValueError where they are not B D, of another D, or not finite."""
        if features.ndim != 2:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected (images, features)")
        if self.count and features.shape[1] != len(self.total):
            raise ValueError(f"{features.shape[1]} features per image after {len(self.total)}, expected one network's")
        if not torch.isfinite(features).all():
            raise ValueError(f"the features of {len(features)} images contain NaN or infinity")
        f = features.detach().to("cpu" if features.device.type == "mps" else features.device).double()
        self.count += len(f)
        self.total = self.total.to(f) + f.sum(0)
        self.products = self.products.to(f) + f.T @ f

    def __add__(self, other: Moments) -> Moments:
        """Add the sums of another set. ValueError where the numbers of features differ."""
        if self.count and other.count and len(self.total) != len(other.total):
            raise ValueError(f"sums of {len(self.total)} and of {len(other.total)} features, expected one network's")
        mine, theirs = (sums if sums.count else Moments() for sums in (self, other))
        total, products = mine.total.double().cpu(), mine.products.double().cpu()
        return Moments(mine.count + theirs.count, total + theirs.total.cpu(), products + theirs.products.cpu())

    def statistics(self) -> Statistics:
        """Compute mean and covariance. ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"{self.count} images, a covariance needs at least 2")
        mean = self.total / self.count
        covariance = (self.products - self.count * mean.outer(mean)) / (self.count - 1)
        return Statistics(mean.cpu(), covariance.cpu(), self.count)


@torch.no_grad()
def accumulate_moments(features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Moments:
    """Accumulate the moments of features(batch), B D, over batches, in memory that does not grow with their number.

    Args:
        features: a feature extractor, which must be in evaluation mode, or any function of a batch.
        batches: of images, on any device; one process's share where several work together.
    """
    moments = Moments()
    for batch in batches:
        moments.add(features(batch))
    return moments


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Compute the distance, >= 0; 0 for equal statistics of any rank. ValueError where the numbers of features differ.

    tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2). The usual way, the eigenvalues of
    C_a C_b, takes roots of rounding errors where a covariance lacks rank: errors of 1e-5 and, in places, NaN.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features, expected the same features")
    difference = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    overlap = torch.linalg.svdvals(a.root @ b.root).sum()
    return max(0.0, float(difference - 2 * overlap))


def matrix_sqrt(covariance: Tensor) -> Tensor:
    """Take the symmetric root of a positive semi-definite matrix; eigenvalues within rounding of 0 count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1].abs()
    return vectors * torch.where(values > rounding, values, 0).sqrt() @ vectors.T


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics to a safetensors file with a checksum. An unknown count is stored as 0."""
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    tensors["count"] = torch.tensor(statistics.count or 0)
    write_safetensors(path, tensors)


def load_statistics(path: Path) -> Statistics:
    """Read what `save_statistics` wrote. ValueError, naming the file, where it is missing, damaged or another kind."""
    tensors = read_safetensors(path)
    actual = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    features = len(tensors["mean"]) if "mean" in tensors and tensors["mean"].ndim else 0
    shapes = {"mean": (features,), "covariance": (features, features)}
    expected = {name: (shape, torch.float64) for name, shape in shapes.items()} | {"count": ((), torch.int64)}
    if actual != expected:
        contents = ", ".join(f"{name} {shape}" for name, (shape, _) in sorted(actual.items()))
        raise ValueError(
            f"{path} holds {contents or 'nothing'}, expected fp64 mean (D,), covariance (D, D) and count ()"
        )
    return check_finite(path, Statistics(tensors["mean"], tensors["covariance"], int(tensors["count"]) or None))


def load_edm_statistics(path: Path) -> Statistics:
    """Read reference statistics as EDM publishes them: an .npz with mu (D) and sigma (D D), of an unknown count.

    Nothing in it is unpickled. ValueError, naming the file, where it is missing, damaged or another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(sum(part.file_size for part in archive.infolist()), path.stat().st_size)
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise ValueError(f"{path} is damaged, or no .npz with mu and sigma: {first_line(error)}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        raise ValueError(f"{path} holds {shapes}, expected (D,) and (D, D)")
    return check_finite(path, Statistics(mean, covariance, None))


def check_finite(path: Path, statistics: Statistics) -> Statistics:
    """Return the statistics. ValueError, naming their file, where a number is NaN or infinite."""
    if not (torch.isfinite(statistics.mean).all() and torch.isfinite(statistics.covariance).all()):
        raise ValueError(f"{path} contains NaN or infinity")
    return statistics

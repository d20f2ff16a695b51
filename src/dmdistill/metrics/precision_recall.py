"""Precision, recall, density and coverage: how two sets of images overlap in feature space.

The manifold of a set is the union of balls around its features, each reaching to its k-th nearest neighbour in the set,
the sphere included. The matrix of all distances is never held: it is computed in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dmdistill.metrics.kid import check_features

__all__ = ["density_coverage", "precision_recall"]

BLOCK = 1 << 23  # distances held at once: 64 MB


def precision_recall(generated: Tensor, reference: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Compute the share of generated images in the reference's manifold, and the reverse (Kynkaanniemi et al. 2019).

    ValueError for k images or fewer.

    Args:
        generated: features, N D.
        reference: features, M D, on the same device.
        k: which neighbour a ball reaches to.
    """
    check_features(generated, reference, least=k + 1, why=f"the {k}-th nearest neighbour")
    x, y = generated.double(), reference.double()
    return share_within(x, y, radii(y, k)), share_within(y, x, radii(x, k))


def density_coverage(generated: Tensor, reference: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Compute density and coverage of the reference's balls (Naeem et al. 2020).

    Density is how many balls a generated image lies in on average, over k: 1 where both sets are alike, and possibly
    more. Coverage is the share of balls with a generated image in them. ValueError for k images or fewer.

    Args:
        generated: features, N D.
        reference: features, M D, on the same device.
        k: which neighbour a ball reaches to.
    """
    check_features(generated, reference, least=k + 1, why=f"the {k}-th nearest neighbour")
    x, y = generated.double(), reference.double()
    inside, covered = 0, 0
    for rows, distances in distance_blocks(y, x):
        hits = distances <= squared_radii(y, rows, k)[:, None]
        inside += int(hits.sum())
        covered += int(hits.any(1).sum())
    return inside / (k * len(x)), covered / len(y)


def share_within(x: Tensor, centers: Tensor, reach: Tensor) -> float:
    """Compute the share of x that lies in any ball; reach: the squared radii."""
    return sum(int((distances <= reach).any(1).sum()) for _, distances in distance_blocks(x, centers)) / len(x)


def radii(x: Tensor, k: int) -> Tensor:
    """Compute the squared distance of each row to its k-th nearest neighbour among the others."""
    return torch.cat([squared_radii(x, rows, k) for rows in row_blocks(x, x)])


def squared_radii(x: Tensor, rows: slice, k: int) -> Tensor:
    """Compute the same for some rows: the (k + 1)-th least distance, as the least is to itself."""
    return squared_distances(x[rows], x).kthvalue(k + 1, dim=1).values


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of x with their squared distances to all of y."""
    for rows in row_blocks(x, y):
        yield rows, squared_distances(x[rows], y)


def row_blocks(x: Tensor, y: Tensor) -> Iterator[slice]:
    """Yield the rows of x in blocks whose distances to y fit in BLOCK."""
    step = max(1, BLOCK // len(y))
    return (slice(start, start + step) for start in range(0, len(x), step))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute |x - y|^2 of all pairs, fp64. What is within rounding of 0 is 0, so that a copy lies on its original."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    distances = torch.addmm(lengths, x, y.T, alpha=-2)
    return torch.where(distances > lengths * x.shape[1] * torch.finfo(x.dtype).eps, distances, 0)

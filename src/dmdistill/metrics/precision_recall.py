"""How much of a set lies within another's manifold, by nearest neighbours in features.

A manifold is the union of balls around the set's features, each reaching to its k-th nearest neighbour in the set, the
sphere included. No matrix of all distances is held: rows come in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dmdistill.metrics.kid import check_features

__all__ = ["density_coverage", "precision_recall"]

PLACES = 1 << 23  # distances held at once: 64 MB


def precision_recall(generated: Tensor, reference: Tensor, *, k: int = 3) -> tuple[float, float]:
    """The share of generated images within the reference's manifold, and the reverse (Kynkaanniemi et al. 2019).

    generated, reference: N D and M D, on one device. ValueError for k images or fewer.
    """
    check_features(generated, reference, least=k + 1, why=f"the {k}-th nearest neighbour")
    x, y = generated.double(), reference.double()
    return within(x, y, radii(y, k)), within(y, x, radii(x, k))


def density_coverage(generated: Tensor, reference: Tensor, *, k: int = 5) -> tuple[float, float]:
    """How many balls of the reference an image is in, over k; the share of balls with an image (Naeem et al. 2020).

    Coverage is at most 1; density is 1 where both sets are alike, and may exceed it. Arguments as above.
    """
    check_features(generated, reference, least=k + 1, why=f"the {k}-th nearest neighbour")
    x, y = generated.double(), reference.double()
    inside, covered = 0, 0
    for rows, distances in squared_distances(y, x):
        hits = distances <= radii_of(y, rows, k)[:, None]
        inside += int(hits.sum())
        covered += int(hits.any(1).sum())
    return inside / (k * len(x)), covered / len(y)


def within(x: Tensor, centres: Tensor, reach: Tensor) -> float:
    """The share of x in any ball."""
    return sum(int((distances <= reach).any(1).sum()) for _, distances in squared_distances(x, centres)) / len(x)


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distances to each one's k-th nearest neighbour in x, itself aside."""
    return torch.cat([radii_of(x, rows, k) for rows in pieces(x, x)])


def radii_of(x: Tensor, rows: slice, k: int) -> Tensor:
    """The same of some rows: the (k + 1)-th least distance, for the least is its own, 0."""
    return distances_of(x[rows], x).kthvalue(k + 1, dim=1).values


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for rows in pieces(x, y):
        yield rows, distances_of(x[rows], y)


def pieces(x: Tensor, y: Tensor) -> Iterator[slice]:
    step = max(1, PLACES // len(y))
    return (slice(start, start + step) for start in range(0, len(x), step))


def distances_of(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 of all pairs, fp64. What is within rounding of 0 is 0: a copy lies on its original."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    distances = torch.addmm(lengths, x, y.T, alpha=-2)
    return torch.where(distances > lengths * x.shape[1] * torch.finfo(x.dtype).eps, distances, 0)

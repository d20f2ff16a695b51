"""The Inception score (Salimans et al. 2016): are single images recognisable, and are all of them diverse?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["SPLITS", "ClassScores"]

SPLITS = 10


@dataclass
class ClassScores:
    """Sums from which the score is computed, fp64, on the CPU; sums of batches or processes are added by `+`.

    Images are dealt to the SPLITS splits in turn.

    Attributes:
        counts: images of each split.
        total: SPLITS classes, the sum of the probabilities.
        certainty: of each split the sum of p ln p.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(SPLITS, dtype=torch.int64))
    total: Tensor = field(default_factory=lambda: torch.zeros(SPLITS, 1, dtype=torch.float64))
    certainty: Tensor = field(default_factory=lambda: torch.zeros(SPLITS, dtype=torch.float64))

    def add(self, probabilities: Tensor, *, first: int | None = None) -> None:
        """Add class probabilities of images, B classes. ValueError where a row's sum is not 1.

        Args:
            probabilities: B classes.
            first: number of the first image, which decides its split; by default the number of images added so far.
        """
        p = probabilities.double().cpu()
        if p.ndim != 2 or not torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-3):  # half precision is near enough
            raise ValueError(f"probabilities have shape {tuple(p.shape)}, expected (images, classes) of sum 1")
        start = int(self.counts.sum()) if first is None else first
        splits = (start + torch.arange(len(p))) % SPLITS
        self.counts = self.counts + torch.bincount(splits, minlength=SPLITS)
        self.total = (self.total + p.new_zeros(SPLITS, p.shape[1])).index_add(0, splits, p)
        self.certainty = self.certainty.index_add(0, splits, torch.special.xlogy(p, p).sum(1))

    def __add__(self, other: ClassScores) -> ClassScores:
        """Add the sums of another set."""
        return ClassScores(self.counts + other.counts, self.total + other.total, self.certainty + other.certainty)

    def score(self) -> tuple[float, float]:
        """Compute exp E KL(p(class | image), p(class)): its mean over the splits, and their standard deviation.

        ValueError for fewer images than splits.
        """
        if int(self.counts.min()) < 1:
            raise ValueError(f"{int(self.counts.sum())} images, the Inception score needs at least {SPLITS}")
        marginal = self.total / self.counts[:, None]
        scores = (self.certainty / self.counts - torch.special.xlogy(marginal, marginal).sum(1)).exp()
        return float(scores.mean()), math.sqrt(float(scores.var(correction=0)))

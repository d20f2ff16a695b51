"""The Inception score (Salimans et al. 2016): are single images clear, and all of them various?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["SPLITS", "ClassScores"]

SPLITS = 10


@dataclass
class ClassScores:
    """The sums the score is made of, fp64, on the CPU: batch after batch, and processes' shares by `+`.

    Images are dealt to SPLITS hands in turn. counts: of each hand's images. total: SPLITS classes, of probabilities.
    certainty: of sum p ln p.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(SPLITS, dtype=torch.int64))
    total: Tensor = field(default_factory=lambda: torch.zeros(SPLITS, 1, dtype=torch.float64))
    certainty: Tensor = field(default_factory=lambda: torch.zeros(SPLITS, dtype=torch.float64))

    def add(self, probabilities: Tensor, *, first: int | None = None) -> None:
        """Of more images: B classes, rows of sum 1. ValueError where they are none.

        first: the number of the first of them in all processes together, whose turn it is; as many as came where None.
        """
        p = probabilities.double().cpu()
        if p.ndim != 2 or not torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-3):  # half precision is near enough
            raise ValueError(f"probabilities have shape {tuple(p.shape)}, expected (images, classes) of sum 1")
        start = int(self.counts.sum()) if first is None else first
        hands = (start + torch.arange(len(p))) % SPLITS
        self.counts = self.counts + torch.bincount(hands, minlength=SPLITS)
        self.total = (self.total + p.new_zeros(SPLITS, p.shape[1])).index_add(0, hands, p)
        self.certainty = self.certainty.index_add(0, hands, torch.special.xlogy(p, p).sum(1))

    def __add__(self, other: ClassScores) -> ClassScores:
        """Of both sets together."""
        return ClassScores(self.counts + other.counts, self.total + other.total, self.certainty + other.certainty)

    def score(self) -> tuple[float, float]:
        """exp E KL(p(class | image), p(class)): the mean over the hands, and their standard deviation.

        ValueError for fewer images than hands.
        """
        if int(self.counts.min()) < 1:
            raise ValueError(f"{int(self.counts.sum())} images, the Inception score needs at least {SPLITS}")
        marginal = self.total / self.counts[:, None]
        scores = (self.certainty / self.counts - torch.special.xlogy(marginal, marginal).sum(1)).exp()
        return float(scores.mean()), math.sqrt(float(scores.var(correction=0)))

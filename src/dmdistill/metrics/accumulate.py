"""Features of a set of images, accumulated batch by batch in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmdistill.data.seeds import derive_seed
from dmdistill.metrics.frechet import Moments, Statistics
from dmdistill.metrics.inception_score import ClassScores

__all__ = ["CAPACITY", "FeatureAccumulator", "FeatureStatistics", "sample_numbers"]

CAPACITY = 10_000  # images whose features are stored: 80 MB of Inception's
PENDING = 32  # batches between two merges into the stored features, each of which copies them
KEY = 2  # of the seeds of sampling keys, which are no image's noise


@dataclass(frozen=True)
class FeatureStatistics:
    """What the metrics are computed from: the features of a set of images in one network.

    Attributes:
        source: id of the feature extractor; only sets of the same one are compared.
        name: of the feature extractor, "inception" or a classifier's.
        statistics: of all images.
        features: of a random sample of the images, N D, fp32, on the CPU; None where only statistics are known.
        classes: sums of the Inception score, or None.
    """

    source: str
    name: str
    statistics: Statistics
    features: Tensor | None = None
    classes: ClassScores | None = None


@dataclass
class FeatureAccumulator:
    """Sums over images and a random sample of their features; those of several processes are added by `+`.

    The sample consists of the images with the least keys. A key is a hash of the image's number, so the sample depends
    neither on batches nor on processes.

    Attributes:
        source: id of the feature extractor.
        name: of the feature extractor.
        capacity: images whose features are stored.
        moments: of all features.
        features: of the sample, as its keys are.
        keys: of the sample, ascending.
        pending: features and keys that are yet to be merged into the sample.
        classes: sums of the Inception score.
    """

    source: str
    name: str
    capacity: int = CAPACITY
    moments: Moments = field(default_factory=Moments)
    features: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    classes: ClassScores = field(default_factory=ClassScores)

    def add(self, features: Tensor, *, first: int) -> None:
        """Add features, B D. ValueError where they are of another D or not finite.

        Args:
            features: B D, on any device.
            first: number of the first image in its set.
        """
        self.moments.add(features)
        if self.capacity:
            seeds = [sampling_key(first + i) for i in range(len(features))]
            self.pending.append((features.detach().float().cpu(), torch.tensor(seeds, dtype=torch.float64)))
        if len(self.pending) >= PENDING:
            self.merge()

    def merge(self) -> None:
        """Merge what is pending into the sample."""
        if self.pending:
            stored = [(self.features, self.keys)] if len(self.keys) else []
            features, keys = map(torch.cat, zip(*stored, *self.pending, strict=True))
            keys, order = keys.sort(stable=True)
            self.features, self.keys, self.pending = features[order[: self.capacity]], keys[: self.capacity], []

    def __add__(self, other: FeatureAccumulator) -> FeatureAccumulator:
        """Add another set's. ValueError where feature extractor or capacity differ."""
        if (self.source, self.capacity) != (other.source, other.capacity):
            raise ValueError(
                f"features of {self.source} with capacity {self.capacity} and of {other.source} with capacity "
                f"{other.capacity} cannot be added: expected the same"
            )
        both = FeatureAccumulator(self.source, self.name, self.capacity, self.moments + other.moments)
        both.classes = self.classes + other.classes
        both.pending = [(one.features, one.keys) for one in (self, other) if len(one.keys)]
        both.pending += self.pending + other.pending
        both.merge()
        return both

    def statistics(self) -> FeatureStatistics:
        """Compute what the metrics need. ValueError for fewer than two images."""
        self.merge()
        return FeatureStatistics(
            self.source,
            self.name,
            self.moments.statistics(),
            features=self.features if self.capacity else None,
            classes=self.classes if int(self.classes.counts.sum()) else None,
        )


def sample_numbers(count: int, size: int) -> Tensor:
    """Return the numbers (size,) of the images that are stored of images 0 ... count - 1, in the order of features."""
    keys = torch.tensor([sampling_key(number) for number in range(count)], dtype=torch.float64)
    return keys.sort(stable=True).indices[:size]


def sampling_key(number: int) -> int:
    """Return the key of an image: those with the least are stored."""
    return derive_seed(0, number, KEY)

"""What the metrics know of a set of images, gathered batch by batch in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmdistill.metrics.features import Classifying, Features
from dmdistill.metrics.frechet import Moments, Statistics
from dmdistill.metrics.inception_score import ClassScores

__all__ = ["KEPT", "FeatureAccumulator", "FeatureStatistics", "describe"]

KEPT = 10_000  # images whose features are kept: 80 MB of Inception's


@dataclass(frozen=True)
class FeatureStatistics:
    """What `compute` takes of generated and of reference images.

    source: the features' id; only sets of one source are compared. name: of the features, "inception" or a judge's.
    statistics: of all images. features: of some, drawn evenly, fp32 on the CPU: n D; None where only statistics are
    known, as from EDM's references. classes: for the Inception score, or None. clip: the mean CLIP score, or None.
    """

    source: str
    name: str
    statistics: Statistics
    features: Tensor | None = None
    classes: ClassScores | None = None
    clip: float | None = None


@dataclass
class FeatureAccumulator:
    """The sums and the sample that a description is made of; processes' shares are added by `+`.

    source, name: the features' id and name. keep: how many images' features are kept, all the same likely: those with
    the least of random keys. features, keys: theirs.
    """

    source: str
    name: str
    keep: int = KEPT
    moments: Moments = field(default_factory=Moments)
    features: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    classes: ClassScores = field(default_factory=ClassScores)
    clip: tuple[int, float] = (0, 0.0)  # images, and the sum of their scores

    def add(self, features: Tensor, *, rng: torch.Generator) -> None:
        """Features, B D, of B more images. rng: on the CPU, another seed in each process."""
        self.moments.add(features)
        keys = torch.rand(len(features), generator=rng, dtype=torch.float64)
        if len(self.keys) == self.keep and self.keep:
            least = (keys < self.keys.max()).nonzero()[:, 0]
            features, keys = features[least.to(features.device)], keys[least]
        self.sample(features.detach().float().cpu(), keys)

    def sample(self, features: Tensor, keys: Tensor) -> None:
        """Keep of these and the kept ones those with the least keys."""
        if len(keys) and self.keep:
            held = self.features if len(self.features) else features[:0]
            keys, order = torch.cat([self.keys, keys]).sort(stable=True)
            self.keys, self.features = keys[: self.keep], torch.cat([held, features])[order[: self.keep]]

    def add_clip(self, scores: Tensor) -> None:
        """CLIP scores of more images."""
        self.clip = (self.clip[0] + len(scores), self.clip[1] + float(scores.double().sum()))

    def __add__(self, other: FeatureAccumulator) -> FeatureAccumulator:
        """Of both sets together. ValueError where they were seen through different features, or keep differently."""
        if (self.source, self.keep) != (other.source, other.keep):
            raise ValueError(
                f"sets seen through {self.source}, {self.keep} kept, and {other.source}, {other.keep} kept, expected "
                "the same of both"
            )
        clip = (self.clip[0] + other.clip[0], self.clip[1] + other.clip[1])
        both = FeatureAccumulator(self.source, self.name, self.keep, self.moments + other.moments, clip=clip)
        both.classes = self.classes + other.classes
        for share in (self, other):
            both.sample(share.features, share.keys)
        return both

    def description(self) -> FeatureStatistics:
        """ValueError for fewer than two images."""
        return FeatureStatistics(
            self.source,
            self.name,
            self.moments.statistics(),
            features=self.features if self.keep else None,
            classes=self.classes if int(self.classes.counts.sum()) else None,
            clip=self.clip[1] / self.clip[0] if self.clip[0] else None,
        )


def describe(
    features: Features, batches: Iterable[Tensor], *, rng: torch.Generator, keep: int = KEPT, classes: bool = False
) -> FeatureStatistics:
    """A description of batches of images, uint8 B C H W. classes: for the Inception score too.

    ValueError for features that know no classes, fewer than two images, features that are not finite.
    """
    gathering = FeatureAccumulator(features.id, features.name, keep)
    for images in batches:
        if classes:
            if not isinstance(features, Classifying):
                raise ValueError(f"the Inception score needs Inception's classes, {features.name} has none")
            found, probabilities = features.classify(images)
            gathering.classes.add(probabilities)
        else:
            found = features(images)
        gathering.add(found, rng=rng)
    return gathering.description()

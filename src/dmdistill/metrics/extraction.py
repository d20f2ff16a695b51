"""Feature extraction: one network's accumulated features, or scores by prompts, of a numbered set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from dmdistill.metrics.accumulate import CAPACITY, FeatureAccumulator, FeatureStatistics
from dmdistill.metrics.features import ClassPredictor, FeatureExtractor

__all__ = ["Extraction", "FeatureExtraction", "PromptScore", "PromptScoring"]


@dataclass
class FeatureExtraction:
    """Extraction of features.

    Attributes:
        extractor: the network.
        store_features: store features of single images, not only their statistics.
        predict_classes: accumulate the class probabilities of the Inception score too; ValueError where the network
            has none.
    """

    extractor: FeatureExtractor
    store_features: bool = False
    predict_classes: bool = False
    accumulator: FeatureAccumulator = field(init=False)

    def __post_init__(self) -> None:
        capacity = CAPACITY if self.store_features else 0
        self.accumulator = FeatureAccumulator(self.extractor.id, self.extractor.name, capacity)

    @property
    def id(self) -> str:
        """Names the network and what is accumulated."""
        return f"{self.extractor.id}, capacity {self.accumulator.capacity}, classes: {self.predict_classes}"

    def add(self, images: Tensor, rows: range) -> None:
        """Add images, uint8, B C H W, of these numbers."""
        self.accumulator.add(self.extract(images, rows.start), first=rows.start)

    def extract(self, images: Tensor, first: int) -> Tensor:
        """Extract features, and add class probabilities where they are wanted."""
        if not self.predict_classes:
            return self.extractor(images)
        if not isinstance(self.extractor, ClassPredictor):
            raise ValueError(f"the Inception score needs Inception's classes, {self.extractor.name} has none")
        features, probabilities = self.extractor.classify(images)
        self.accumulator.classes.add(probabilities, first=first)
        return features

    def statistics(self) -> FeatureStatistics:
        """Compute what the metrics need. ValueError for fewer than two images."""
        return self.accumulator.statistics()


class PromptScore(Protocol):
    """A score of images by their prompts.

    Attributes:
        id: names the weights, for caches.
    """

    id: str

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images (uint8, B C H W), each by its prompt: fp32, B, on the CPU."""
        ...


@dataclass
class PromptScoring:
    """Accumulation of scores by prompts, as features of one number: prompts belong to images in turn.

    Attributes:
        name: of the metric: clip or alignment.
        score: of images and prompts.
        prompts: prompt i % len(prompts) belongs to image i.
    """

    name: str
    score: PromptScore
    prompts: Sequence[str]
    accumulator: FeatureAccumulator = field(init=False)

    def __post_init__(self) -> None:
        self.accumulator = FeatureAccumulator(self.score.id, self.name, 0)

    @property
    def id(self) -> str:
        """Names the score and the prompts."""
        return f"{self.score.id}, {list(self.prompts)}"

    def add(self, images: Tensor, rows: range) -> None:
        """Add images, uint8, B C H W, of these numbers."""
        scores = self.score(images, [self.prompts[row % len(self.prompts)] for row in rows])
        self.accumulator.add(scores[:, None], first=rows.start)


Extraction = FeatureExtraction | PromptScoring
"""What one network accumulates of a numbered set of images."""

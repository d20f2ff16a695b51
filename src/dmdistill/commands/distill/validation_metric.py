"""The metric by which the states of a run are compared: FID against real images, or a classifier's Frechet distance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmdistill.commands.evaluate.generated_images import image_shape
from dmdistill.commands.evaluate.reference_cache import open_reference, reference_features
from dmdistill.data.image_tensors import to_uint8
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.extraction import FeatureExtraction
from dmdistill.metrics.features import FeatureExtractor
from dmdistill.metrics.frechet import Moments, Statistics, accumulate_moments
from dmdistill.metrics.inception import load_inception
from dmdistill.models.model import Teacher

__all__ = ["ValidationMetric", "load_validation_metric", "reference_side"]


@dataclass(frozen=True)
class ValidationMetric:
    """The Frechet distance to real images in a network's features.

    Attributes:
        extractor: the network; with Inception the distance is FID.
        reference: statistics of the real images.
    """

    extractor: FeatureExtractor
    reference: Statistics

    @property
    def label(self) -> str:
        """Name to show: "FID", or "Frechet distance (<classifier>)"."""
        name = self.extractor.name
        return "FID" if name == "inception" else f"Frechet distance ({name})"

    def moments(self, images: Iterable[Tensor]) -> Moments:
        """Accumulate the feature moments of images, batch by batch, B C H W in about [-1, 1], rounded to 8 bits."""
        return accumulate_moments(self.extractor, map(to_uint8, images))


def reference_side(teacher: Teacher) -> int | None:
    """Return the side that real images are cropped and resized to; None for a teacher whose images are not square."""
    _, height, width = image_shape(teacher)
    return height if height == width else None


def load_validation_metric(
    reference: str | None,
    teacher: Teacher,
    *,
    device: torch.device,
    processes: ProcessGroup,
    say: Callable[[str], None],
) -> ValidationMetric | None:
    """Load the metric of a run; None where there is neither a reference nor a classifier of the teacher's images.

    The reference's images are cropped to a square and resized to the teacher's side, unless its images are not square.
    ValueError where they are not of the teacher's shape.

    Args:
        reference: real images or EDM's statistics, for FID. Their features are cached.
        teacher: whose classifier is used without a reference.
        device: where the network computes.
        processes: which share the extraction of the reference's features.
        say: prints a line about the cache.
    """
    if reference is None:
        if teacher.feature_extractor is None:
            return None
        classifier = load_classifier_features(teacher.feature_extractor, device)
        return ValidationMetric(classifier, classifier.reference)
    images = open_reference(reference, side=reference_side(teacher))
    if images.source is not None and images.source.shape != (shape := image_shape(teacher)):
        raise ValueError(f"--reference {reference} has images {images.source.shape}, {teacher.name}'s are {shape}")
    inception = load_inception(device=device)
    extraction = FeatureExtraction(inception)
    features = reference_features(images, [extraction], batch=500, processes=processes, say=say)
    return ValidationMetric(inception, processes.broadcast([one.statistics for one in features])[0])

"""Who compares the states of a distillation on the way: the teacher's judge, or FID against real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.commands.evaluate.feature_extraction import FeatureExtraction
from dmdistill.commands.evaluate.reference_cache import Reference, reference_features
from dmdistill.data.image_sources import open_images
from dmdistill.data.image_tensors import to_uint8
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.features import Features
from dmdistill.metrics.frechet import Statistics, load_edm_statistics
from dmdistill.metrics.inception import load_inception
from dmdistill.models.model import Teacher

__all__ = ["InceptionMetric", "ValidationMetric", "load_validation_metric"]

GROUP = 64  # images that Inception sees at once


class ValidationMetric(Protocol):
    """What a run asks of a judge: features, and those of real images, to which the distance is taken."""

    @property
    def reference(self) -> Statistics: ...

    def features(self, images: Tensor, /) -> Tensor:
        """B D, fp32, of B C H W in about [-1, 1]."""
        ...


@dataclass(frozen=True)
class InceptionMetric:
    """FID: the Frechet distance in Inception's features, of images as a viewer gets them."""

    inception: Features
    reference: Statistics

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self.inception(group) for group in to_uint8(images).split(GROUP)])


def load_validation_metric(
    reference: str | None,
    teacher: Teacher,
    *,
    device: torch.device,
    processes: ProcessGroup,
    say: Callable[[str], None],
) -> ValidationMetric | None:
    """FID against `reference`, real images or EDM's statistics, where it is given; else the teacher's judge, if any.

    What was seen of the images before is read from the cache; else the processes share them. ValueError where they are
    not of the teacher's shape.
    """
    if reference is None:
        return load_classifier_features(teacher.feature_extractor, device) if teacher.feature_extractor else None
    if reference.endswith(".npz"):
        return InceptionMetric(load_inception(device=device), load_edm_statistics(Path(reference)))
    source = open_images(reference)
    if teacher.autoencoder is None and source.shape != teacher.shape:
        raise ValueError(f"--reference {reference} holds images {source.shape}, {teacher.name}'s are {teacher.shape}")
    inception = load_inception(device=device)
    images = Reference(reference, source)
    seen = reference_features(images, [FeatureExtraction(inception)], batch=500, processes=processes, say=say)
    return InceptionMetric(inception, processes.broadcast([one.statistics for one in seen])[0])

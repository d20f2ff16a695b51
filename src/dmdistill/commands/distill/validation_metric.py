"""Who compares the states of a distillation on the way: the teacher's judge, or FID against real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.commands.evaluate.feature_extraction import FeatureLook
from dmdistill.commands.evaluate.reference_cache import Reference, see_reference
from dmdistill.data.image_sources import open_images
from dmdistill.data.images import to_bytes
from dmdistill.distributed.process_group import Processes
from dmdistill.metrics.classifier_features import load_judge
from dmdistill.metrics.features import Features
from dmdistill.metrics.frechet import Statistics, load_edm_statistics
from dmdistill.metrics.inception import load_inception
from dmdistill.models.model import Teacher

__all__ = ["FIDJudge", "Judging", "judge_of"]

GROUP = 64  # images that Inception sees at once


class Judging(Protocol):
    """What a run asks of a judge: features, and those of real images, to which the distance is taken."""

    @property
    def reference(self) -> Statistics: ...

    def features(self, images: Tensor, /) -> Tensor:
        """B D, fp32, of B C H W in about [-1, 1]."""
        ...


@dataclass(frozen=True)
class FIDJudge:
    """FID: the Frechet distance in Inception's features, of images as a viewer gets them."""

    inception: Features
    reference: Statistics

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self.inception(group) for group in to_bytes(images).split(GROUP)])


def judge_of(
    reference: str | None, teacher: Teacher, *, device: torch.device, processes: Processes, say: Callable[[str], None]
) -> Judging | None:
    """FID against `reference`, real images or EDM's statistics, where it is given; else the teacher's judge, if any.

    What was seen of the images before is read from the cache; else the processes share them. ValueError where they are
    not of the teacher's shape.
    """
    if reference is None:
        return load_judge(teacher.judge, device) if teacher.judge else None
    if reference.endswith(".npz"):
        return FIDJudge(load_inception(device=device), load_edm_statistics(Path(reference)))
    source = open_images(reference)
    if teacher.codec is None and source.shape != teacher.shape:
        raise ValueError(f"--reference {reference} holds images {source.shape}, {teacher.name}'s are {teacher.shape}")
    inception = load_inception(device=device)
    images = Reference(reference, source)
    seen = see_reference(images, [FeatureLook(inception)], batch=500, processes=processes, say=say)
    return FIDJudge(inception, processes.told([one.statistics for one in seen])[0])

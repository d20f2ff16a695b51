"""Who compares the states of a distillation on the way: the teacher's judge, or FID against real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dmdistill.app.looks import FeatureLook
from dmdistill.app.references import Reference, see_reference
from dmdistill.data.images import to_bytes
from dmdistill.data.sources import open_images
from dmdistill.metrics.frechet import Statistics, frechet_distance, gather, load_edm_statistics
from dmdistill.metrics.inception import Inception, load_inception
from dmdistill.metrics.judge import load_judge
from dmdistill.teachers.model import Teacher
from dmdistill.training.processes import Processes

__all__ = ["FIDJudge", "Judging", "judge_of"]

GROUP = 64  # images that Inception sees at once


class Judging(Protocol):
    """What a run asks of a judge."""

    def distance(self, batches: Iterable[Tensor]) -> float:
        """Of images, B C H W in about [-1, 1] batch by batch, to real ones: the less the better."""
        ...


@dataclass(frozen=True)
class FIDJudge:
    """FID: the Frechet distance in Inception's features, of images as a viewer gets them."""

    inception: Inception
    reference: Statistics

    def distance(self, batches: Iterable[Tensor]) -> float:
        groups = (group for batch in batches for group in to_bytes(batch).split(GROUP))
        return frechet_distance(gather(self.inception, groups), self.reference)


def judge_of(
    reference: str | None, teacher: Teacher, *, device: torch.device, say: Callable[[str], None]
) -> Judging | None:
    """FID against `reference`, real images or EDM's statistics, where it is given; else the teacher's judge, if any.

    What was seen of the images before is read from the cache. ValueError where they are not of the teacher's shape.
    """
    if reference is None:
        return load_judge(teacher.judge, device) if teacher.judge else None
    if reference.endswith(".npz"):
        return FIDJudge(load_inception(device=device), load_edm_statistics(Path(reference)))
    source = open_images(reference)
    if teacher.codec is None and source.shape != teacher.shape:
        raise ValueError(f"--reference {reference} holds images {source.shape}, {teacher.name}'s are {teacher.shape}")
    inception = load_inception(device=device)
    [seen] = see_reference(
        Reference(reference, source), [FeatureLook(inception)], batch=500, processes=Processes(), say=say
    )
    return FIDJudge(inception, seen.statistics)

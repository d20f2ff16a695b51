"""All metrics of a set of generated images, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmdistill.metrics.accumulate import FeatureStatistics
from dmdistill.metrics.frechet import frechet_distance
from dmdistill.metrics.kid import kernel_inception_distance
from dmdistill.metrics.precision_recall import density_coverage, precision_recall

__all__ = ["METRICS", "NEEDS_FEATURES", "NEEDS_REFERENCE", "Settings", "check_names", "compute", "qualified_name"]

METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "is", "clip")
NEEDS_REFERENCE = METRICS[:6]
NEEDS_FEATURES = METRICS[1:6]  # of both sets, not only statistics


@dataclass(frozen=True)
class Settings:
    """kid_subsets, kid_size: of the kernel distance. recall_k, coverage_k: which neighbour a ball reaches to.

    device: where distances of kept features are computed.
    """

    kid_subsets: int = 100
    kid_size: int = 1000
    recall_k: int = 3
    coverage_k: int = 5
    device: torch.device | str = "cpu"


def compute(
    names: Sequence[str],
    generated: FeatureStatistics,
    reference: FeatureStatistics | None = None,
    *,
    rng: torch.Generator,
    settings: Settings | None = None,
) -> dict[str, float]:
    """Figures by name, those asked for alone, in the order of METRICS.

    names: of METRICS. Each gives a figure named by `qualified_name`; kid also its standard error, kid_error; is also
    is_std.
    rng: draws the subsets of the kernel distance, on the CPU. ValueError, saying which metric lacks what.
    """
    check_names(names)
    settings = settings or Settings()
    figures: dict[str, float] = {}
    for name in METRICS:
        if name in names and name not in figures:
            figures |= GROUPS[name](Sets(name, generated, reference, settings, rng))
    extra = {"kid_error": "kid", "is_std": "is"}
    return {
        qualified_name(name, generated.name): figures[name]
        for name in ORDER
        if name in figures and extra.get(name, name) in names
    }


def check_names(names: Sequence[str]) -> None:
    """ValueError for a name that is no metric's."""
    if unknown := sorted(set(names) - set(METRICS)):
        raise ValueError(f"unknown metric {unknown[0]!r}, known: {', '.join(METRICS)}")


def qualified_name(name: str, features: str) -> str:
    """A figure's name: as published with Inception's features, else with theirs: frechet_<judge>, recall_<judge>.

    CLIP's score is of its own network, whatever the others are seen through.
    """
    if features == "inception" or name == "clip":
        return name
    known = {"fid": "frechet", "kid": "kernel", "kid_error": "kernel_error"}
    return f"{known.get(name, name)}_{features}"


@dataclass(frozen=True)
class Sets:
    """What a metric is computed from, and the lines that say what is missing."""

    name: str
    generated: FeatureStatistics
    reference: FeatureStatistics | None
    settings: Settings
    rng: torch.Generator

    def compared(self) -> tuple[FeatureStatistics, FeatureStatistics]:
        """Both sets. ValueError where there is no reference, or one seen through other features."""
        if self.reference is None:
            raise ValueError(f"{self.name} compares with real images: a reference is needed")
        if self.generated.source != self.reference.source:
            raise ValueError(
                f"{self.name}: the images are seen through {self.generated.source}, the reference through "
                f"{self.reference.source}, expected the same features"
            )
        return self.generated, self.reference

    def features(self) -> tuple[Tensor, Tensor]:
        """Both sets' features, on the device. ValueError where one has statistics alone."""
        kept = []
        for role, description in zip(("generated images", "reference"), self.compared(), strict=True):
            if description.features is None:
                raise ValueError(f"{self.name} needs features of the {role}, which has statistics alone: only fid can")
            kept.append(description.features.to(self.settings.device))
        return kept[0], kept[1]


def fid(sets: Sets) -> dict[str, float]:
    generated, reference = sets.compared()
    return {"fid": frechet_distance(generated.statistics, reference.statistics)}


def kid(sets: Sets) -> dict[str, float]:
    subsets, size = sets.settings.kid_subsets, sets.settings.kid_size
    mean, error = kernel_inception_distance(*sets.features(), rng=sets.rng, subsets=subsets, size=size)
    return {"kid": mean, "kid_error": error}


def similarity(sets: Sets) -> dict[str, float]:
    return dict(zip(("precision", "recall"), precision_recall(*sets.features(), k=sets.settings.recall_k), strict=True))


def fidelity(sets: Sets) -> dict[str, float]:
    found = density_coverage(*sets.features(), k=sets.settings.coverage_k)
    return dict(zip(("density", "coverage"), found, strict=True))


def inception_score(sets: Sets) -> dict[str, float]:
    if sets.generated.classes is None:
        raise ValueError("is needs the probabilities of Inception's classes, which were not gathered")
    return dict(zip(("is", "is_std"), sets.generated.classes.score(), strict=True))


def clip(sets: Sets) -> dict[str, float]:
    if sets.generated.clip is None:
        raise ValueError("clip needs images of prompts and their CLIP scores, which were not gathered")
    return {"clip": sets.generated.clip}


ORDER = ("fid", "kid", "kid_error", "precision", "recall", "density", "coverage", "is", "is_std", "clip")
GROUPS: dict[str, Callable[[Sets], dict[str, float]]] = {
    "fid": fid,
    "kid": kid,
    "precision": similarity,
    "recall": similarity,
    "density": fidelity,
    "coverage": fidelity,
    "is": inception_score,
    "clip": clip,
}

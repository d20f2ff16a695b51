"""All metrics of a set of generated images: what each needs, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmdistill.io.errors import did_you_mean
from dmdistill.metrics.accumulate import FeatureStatistics, sample_numbers
from dmdistill.metrics.diversity import prompt_diversity
from dmdistill.metrics.frechet import frechet_distance
from dmdistill.metrics.kid import kernel_inception_distance
from dmdistill.metrics.precision_recall import density_coverage, precision_recall

__all__ = [
    "BY_PROMPT",
    "METRICS",
    "Metric",
    "MetricOptions",
    "check_metrics",
    "compute_metrics",
    "metric_label",
    "parse_metrics",
]


@dataclass(frozen=True)
class MetricOptions:
    """Parameters of the metrics.

    Attributes:
        kid_subsets: random subsets of the kernel distance.
        kid_subset_size: images in each.
        prompts: prompt i % len(prompts) belongs to generated image i; for the diversity within a prompt only.
        device: where distances between stored features are computed.
    """

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    prompts: Sequence[str] = ()
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Comparison:
    """Inputs of one metric.

    Attributes:
        metric: its name.
        generated: features of the generated images.
        reference: features of the images to compare with, or None.
        options: of all metrics.
        rng: draws random subsets, on the CPU.
    """

    metric: str
    generated: FeatureStatistics
    reference: FeatureStatistics | None
    options: MetricOptions
    rng: torch.Generator

    def sets(self) -> tuple[FeatureStatistics, FeatureStatistics]:
        """Return both sets. ValueError where there is no reference, or one in other features."""
        if self.reference is None:
            raise ValueError(f"{self.metric} compares with reference images, and there are none")
        if self.generated.source != self.reference.source:
            raise ValueError(
                f"{self.metric}: the images' features are {self.generated.source}'s, the reference's are "
                f"{self.reference.source}'s: expected one feature extractor"
            )
        return self.generated, self.reference

    def features(self) -> tuple[Tensor, Tensor]:
        """Return both sets' features, on the device. ValueError where a set has only statistics."""
        features = []
        for role, statistics in zip(("generated images", "reference"), self.sets(), strict=True):
            if statistics.features is None:
                raise ValueError(f"{self.metric} needs features of single images, the {role} has only statistics")
            features.append(statistics.features.to(self.options.device))
        return features[0], features[1]


def frechet(inputs: Comparison) -> dict[str, float]:
    """Compute the Frechet distance, named by the metric: fid or frechet."""
    generated, reference = inputs.sets()
    return {inputs.metric: frechet_distance(generated.statistics, reference.statistics)}


def kid(inputs: Comparison) -> dict[str, float]:
    """Compute the kernel Inception distance and its standard error."""
    subsets, size = inputs.options.kid_subsets, inputs.options.kid_subset_size
    mean, error = kernel_inception_distance(*inputs.features(), rng=inputs.rng, subsets=subsets, subset_size=size)
    return {"kid": mean, "kid_error": error}


def manifold_overlap(inputs: Comparison) -> dict[str, float]:
    """Compute precision and recall."""
    return dict(zip(("precision", "recall"), precision_recall(*inputs.features()), strict=True))


def ball_overlap(inputs: Comparison) -> dict[str, float]:
    """Compute density and coverage."""
    return dict(zip(("density", "coverage"), density_coverage(*inputs.features()), strict=True))


def inception_score(inputs: Comparison) -> dict[str, float]:
    """Compute the Inception score and its standard deviation over the splits."""
    if inputs.generated.classes is None:
        raise ValueError("is needs class probabilities of Inception, which were not extracted")
    return dict(zip(("is", "is_std"), inputs.generated.classes.score(), strict=True))


def diversity(inputs: Comparison) -> dict[str, float]:
    """Compute the diversity within a prompt."""
    features, prompts = inputs.generated.features, inputs.options.prompts
    if features is None or not prompts:
        raise ValueError("diversity needs features of single images, and their prompts")
    first = {text: number for number, text in reversed([*enumerate(prompts)])}
    groups = torch.tensor([first[text] for text in prompts])
    numbers = sample_numbers(inputs.generated.statistics.count or len(features), len(features))
    return {"diversity": prompt_diversity(features.to(inputs.options.device), groups[numbers % len(prompts)])}


def prompt_score(inputs: Comparison) -> dict[str, float]:
    """Return the mean of a score by prompts, named by the metric: clip or alignment."""
    return {inputs.metric: float(inputs.generated.statistics.mean)}


@dataclass(frozen=True)
class Metric:
    """One metric: what it needs, and how it is computed.

    Attributes:
        label: to show.
        compute: returns its values by name; values of other metrics that come with them are used, too.
        extractor: the network whose features or scores it is defined for; None for any feature extractor.
        lower_is_better: the direction.
        needs_reference: needs reference images, or their statistics. (A classifier has statistics of its own.)
        needs_features: needs features of single images, not only their statistics; of both sets with needs_reference.
        needs_classes: needs class probabilities.
        needs_prompts: needs the prompts of the images.
        min_images: images of each set.
    """

    label: str
    compute: Callable[[Comparison], Mapping[str, float]]
    extractor: Literal["inception", "classifier", "clip", "alignment"] | None = None
    lower_is_better: bool = False
    needs_reference: bool = True
    needs_features: bool = True
    needs_classes: bool = False
    needs_prompts: bool = False
    min_images: int = 2


METRICS = {
    "fid": Metric("FID", frechet, extractor="inception", lower_is_better=True, needs_features=False),
    "frechet": Metric(
        "Frechet distance",
        frechet,
        extractor="classifier",
        lower_is_better=True,
        needs_reference=False,
        needs_features=False,
    ),
    "kid": Metric("KID", kid, lower_is_better=True),
    "precision": Metric("precision", manifold_overlap, min_images=4),
    "recall": Metric("recall", manifold_overlap, min_images=4),
    "density": Metric("density", ball_overlap, min_images=6),
    "coverage": Metric("coverage", ball_overlap, min_images=6),
    "is": Metric(
        "Inception score",
        inception_score,
        extractor="inception",
        needs_reference=False,
        needs_features=False,
        needs_classes=True,
        min_images=10,
    ),
    "diversity": Metric("diversity within a prompt", diversity, needs_reference=False, needs_prompts=True),
    "clip": Metric(
        "CLIP score", prompt_score, extractor="clip", needs_reference=False, needs_features=False, needs_prompts=True
    ),
    "alignment": Metric(
        "alignment",
        prompt_score,
        extractor="alignment",
        needs_reference=False,
        needs_features=False,
        needs_prompts=True,
    ),
}
BY_PROMPT = ("clip", "alignment")  # metrics that score images by their prompts
SPREADS = {"kid": "kid_error", "is": "is_std"}  # values that a metric has besides its own
SPREAD_LABELS = {"kid_error": "KID error", "is_std": "Inception score std"}


def compute_metrics(
    names: Sequence[str],
    generated: FeatureStatistics,
    reference: FeatureStatistics | None = None,
    *,
    rng: torch.Generator,
    options: MetricOptions | None = None,
) -> dict[str, float]:
    """Compute metrics by name, in the order of METRICS. ValueError, naming the metric, where something is missing.

    In a classifier's features a name ends in the classifier's: frechet_<classifier>, recall_<classifier>. kid comes
    with its standard error, kid_error; is with its standard deviation, is_std.

    Args:
        names: of METRICS.
        generated: features of the generated images.
        reference: features of the images to compare with.
        rng: draws the subsets of the kernel distance, on the CPU.
        options: parameters of the metrics.
    """
    check_metrics(names)
    values: dict[str, float] = {}
    for name in (name for name in METRICS if name in names):
        if (needed := METRICS[name].extractor) in ("inception", *BY_PROMPT) and generated.name != needed:
            raise ValueError(f"{name} is defined for the features of {needed}, these are {generated.name}'s")
        if name not in values:
            values |= METRICS[name].compute(Comparison(name, generated, reference, options or MetricOptions(), rng))
    suffix = "" if generated.name in ("inception", *BY_PROMPT) else f"_{generated.name}"
    keys = [key for name in METRICS if name in names for key in (name, SPREADS.get(name, "")) if key]
    return {key + suffix: values[key] for key in keys}


def check_metrics(names: Sequence[str]) -> None:
    """Raise a ValueError, suggesting the nearest name, where one is no metric's."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{did_you_mean(name, METRICS) or '.'} Known: {', '.join(METRICS)}")


def parse_metrics(text: str) -> list[str]:
    """Split comma-separated names of metrics. ValueError where one is empty or unknown."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--metrics {text!r} has an empty name: give some of {','.join(METRICS)}")
    check_metrics(names)
    return list(dict.fromkeys(names))


def metric_label(key: str) -> tuple[str, str]:
    """Return label and direction of a value of `compute_metrics`: ("KID (my-classifier)", "lower is better")."""
    for name in sorted({**METRICS, **SPREAD_LABELS}, key=len, reverse=True):
        if key == name or key.startswith(f"{name}_"):
            extractor = f" ({key[len(name) + 1 :]})" if key != name else ""
            if name in SPREAD_LABELS:
                return SPREAD_LABELS[name] + extractor, ""
            direction = "lower is better" if METRICS[name].lower_is_better else "higher is better"
            return METRICS[name].label + extractor, direction
    return key, ""

"""Computation of an evaluation's metrics: every network extracts the features of each set of images once."""

from __future__ import annotations

from functools import partial

import torch

from dmdistill.commands.evaluate.feature_extraction import extract_features
from dmdistill.commands.evaluate.inputs import Evaluation
from dmdistill.commands.evaluate.reference_cache import reference_features
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.io.console import say
from dmdistill.metrics.accumulate import FeatureStatistics
from dmdistill.metrics.alignment import Alignment
from dmdistill.metrics.clip_score import load_clip
from dmdistill.metrics.extraction import Extraction, FeatureExtraction, PromptScoring
from dmdistill.metrics.inception import load_inception
from dmdistill.metrics.registry import METRICS, MetricOptions, compute_metrics

__all__ = ["compute_values"]

DIGITS = 4  # of a value: the further ones change with the batch, as networks' results do
FID_IMAGES = 10_000  # FID rises as the number of images falls, below this by whole points
BENCHMARK_IMAGES = (30_000, 50_000)  # of COCO, and of CIFAR-10 and ImageNet
KID_SUBSET = MetricOptions().kid_subset_size
warn = partial(say, stderr=True)  # beside the table


def compute_values(evaluation: Evaluation, processes: ProcessGroup) -> tuple[dict[str, float], int]:
    """Compute the metrics by name, and the number of images they are of, on the first process.

    The other processes get ({}, 0). What a reader of the values must know is printed to stderr. Without metrics no
    image is generated.
    """
    extractions = build_extractions(evaluation)
    if not extractions:
        return {}, 0
    references = extract_references(evaluation, extractions, processes)
    source, batch = evaluation.source, evaluation.batch
    name = f"{'generating images of' if evaluation.model is not None else 'extracting features of'} {source.name}"
    accumulators = extract_features(
        source, evaluation.count, list(extractions.values()), batch=batch, processes=processes, name=name
    )
    if not processes.is_main:
        return {}, 0
    values: dict[str, float] = {}
    for extractor, accumulator in zip(extractions, accumulators, strict=True):
        features = accumulator.statistics()
        values |= compute_group(evaluation, extractor, features, references.get(features.source))
    images = max(accumulator.moments.count for accumulator in accumulators)
    for line in count_warnings(evaluation, images):
        warn(line)
    return {key: float(f"{value:.{DIGITS}g}") for key, value in values.items()}, images


def build_extractions(evaluation: Evaluation) -> dict[str, Extraction]:
    """Build one extraction for each network that the metrics need, by its kind."""
    config, extractions = evaluation.config, dict[str, Extraction]()
    if metrics := [METRICS[name] for name in evaluation.metrics_in("inception")]:
        inception = load_inception(config.inception, device=evaluation.device, resizing=config.resizing)
        predict_classes = any(metric.needs_classes for metric in metrics)
        if predict_classes:  # a file without the output layer says so before anything is generated
            inception.classify(torch.zeros(1, *evaluation.source.shape, dtype=torch.uint8))
        store_features = any(metric.needs_features for metric in metrics)
        extractions["inception"] = FeatureExtraction(inception, store_features, predict_classes)
    if (metrics := evaluation.metrics_in("classifier")) and evaluation.classifier is not None:
        store_features = any(METRICS[name].needs_features for name in metrics)
        extractions["classifier"] = FeatureExtraction(evaluation.classifier, store_features)
    if evaluation.metrics_in("clip") and config.clip is not None:
        clip = load_clip(config.clip, device=evaluation.device)
        extractions["clip"] = PromptScoring("clip", clip, evaluation.prompts)
    if evaluation.metrics_in("alignment") and evaluation.classifier is not None:
        extractions["alignment"] = PromptScoring("alignment", Alignment(evaluation.classifier), evaluation.prompts)
    return extractions


def extract_references(
    evaluation: Evaluation, extractions: dict[str, Extraction], processes: ProcessGroup
) -> dict[str, FeatureStatistics]:
    """Extract or read the features to compare with, by the ids of their networks."""
    classifier, reference = evaluation.classifier, evaluation.reference
    references = {}
    if classifier is not None:  # unless other images are given
        references[classifier.id] = FeatureStatistics(classifier.id, classifier.name, classifier.reference)
    if reference is None:
        return references
    compared = [one for one in extractions.values() if isinstance(one, FeatureExtraction)]
    if reference.source is None:  # statistics of Inception's features
        compared = [one for one in compared if one.extractor is not classifier]
    new = [FeatureExtraction(one.extractor, one.store_features) for one in compared]
    features = reference_features(reference, new, batch=evaluation.batch, processes=processes, say=warn)
    return references | {one.source: one for one in features}


def compute_group(
    evaluation: Evaluation, extractor: str, features: FeatureStatistics, reference: FeatureStatistics | None
) -> dict[str, float]:
    """Compute the metrics in one network's features."""
    if reference is not None and len(reference.statistics.mean) != len(features.statistics.mean):
        raise ValueError(
            f"--reference {evaluation.config.reference} holds statistics of {len(reference.statistics.mean)} features, "
            f"{features.name} has {len(features.statistics.mean)}: expected statistics of the same features"
        )
    stored = [len(one.features) for one in (features, reference) if one is not None and one.features is not None]
    size, prompts = min([KID_SUBSET, *stored]), evaluation.prompts
    options = MetricOptions(kid_subset_size=size, prompts=prompts, device=evaluation.device)
    rng = torch.Generator().manual_seed(evaluation.config.seed)
    return compute_metrics(evaluation.metrics_in(extractor), features, reference, rng=rng, options=options)


def count_warnings(evaluation: Evaluation, images: int) -> list[str]:
    """Say where the numbers of images make the values misleading or incomparable."""
    metrics, lines = evaluation.metrics, []
    if images < evaluation.count:
        lines.append(f"{evaluation.count - images} images of {evaluation.source.name} cannot be read and were skipped")
    if "fid" in metrics and images < FID_IMAGES:
        lines.append(f"FID of {images} images is far above that of 50000: compare it only with FID of as many images")
    elif "fid" in metrics and images not in BENCHMARK_IMAGES:
        lines.append(f"FID of {images} images: the benchmarks take 50000, COCO's 30000")
    reference = evaluation.reference.count if evaluation.reference is not None else None
    if "kid" in metrics and (subset := min(images, reference or images)) < KID_SUBSET:
        lines.append(f"the subsets of KID have {subset} images, {KID_SUBSET} are usual")
    overlaps = [name for name in ("precision", "recall", "density", "coverage") if name in metrics]
    if overlaps and reference is not None and reference != images:
        lines.append(f"{', '.join(overlaps)} of {images} images against {reference}: as many of each are usual")
    return lines

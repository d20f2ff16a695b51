"""The figures of an evaluation: each set of images is looked at once, by all networks that the metrics need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console

from dmdistill.commands.evaluate.feature_extraction import ClipScoring, Extraction, FeatureExtraction, extract_features
from dmdistill.commands.evaluate.inputs import EvaluationInputs
from dmdistill.commands.evaluate.reference_cache import reference_features
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.metrics.accumulate import FeatureAccumulator, FeatureStatistics
from dmdistill.metrics.clip_score import load_clip
from dmdistill.metrics.inception import load_inception
from dmdistill.metrics.registry import Settings, compute
from dmdistill.metrics.requirements import METRICS, SUBSET, rounded, warnings_of

__all__ = ["compute_metrics"]


def compute_metrics(evaluation: EvaluationInputs, processes: ProcessGroup) -> tuple[dict[str, float], int]:
    """Figures by name, and of how many images; for the first process, which says what their reader must know.

    Where nothing is asked for, no image is drawn.
    """
    looks = looks_of(evaluation)
    if not looks:
        return {}, 0
    references = references_of(evaluation, looks, processes)
    source, batch = evaluation.source, evaluation.batch
    what = "drawing images" if evaluation.model is not None else f"looking at {source.name}"
    found = extract_features(source, evaluation.count, looks, batch=batch, processes=processes, name=what)
    if not processes.is_main:
        return {}, 0
    figures: dict[str, float] = {}
    for look, gathering in zip(looks, found, strict=True):
        figures |= computed(evaluation, look, gathering, references.get(gathering.source))
    images = max(max(one.moments.count, one.clip[0]) for one in found)
    if images < evaluation.count:
        say(f"{evaluation.count - images} pictures of {source.name} cannot be read, and were left out")
    real = evaluation.reference.count if evaluation.reference is not None else None
    for line in warnings_of(evaluation.names, images=images, reference=real):
        say(line)
    return {name: rounded(value) for name, value in figures.items()}, images


def looks_of(evaluation: EvaluationInputs) -> list[Extraction]:
    """One for each network that the metrics need."""
    config, looks = evaluation.config, []
    if wanted := [METRICS[name] for name in names_of(evaluation, "inception")]:
        inception = load_inception(config.inception, device=evaluation.device, resizing=config.resizing)
        keep, classes = any(one.keep for one in wanted), any(one.classes for one in wanted)
        if classes:  # a file without the last layer says so before anything is drawn
            inception.classify(torch.zeros(1, *evaluation.source.shape, dtype=torch.uint8))
        looks.append(FeatureExtraction(inception, keep=keep, classes=classes))
    if (
        wanted := [METRICS[name] for name in names_of(evaluation, "feature_extractor")]
    ) and evaluation.feature_extractor is not None:
        looks.append(FeatureExtraction(evaluation.feature_extractor, keep=any(one.keep for one in wanted)))
    if "clip" in evaluation.names and config.clip is not None:
        looks.append(ClipScoring(load_clip(config.clip, device=evaluation.device), evaluation.prompts))
    return looks


def names_of(evaluation: EvaluationInputs, network: str) -> list[str]:
    """The metrics asked for that are of this network; the others use --feature-extractor, else Inception."""
    any_features = "inception" if evaluation.config.feature_extractor is None else "feature_extractor"
    return [name for name in evaluation.names if (METRICS[name].network or any_features) == network]


def references_of(
    evaluation: EvaluationInputs, looks: Sequence[Extraction], processes: ProcessGroup
) -> dict[str, FeatureStatistics]:
    """What the looks that compare see of the reference, by their networks' ids. A judge has one of its own."""
    feature_extractor, reference = evaluation.feature_extractor, evaluation.reference
    found = (
        {
            feature_extractor.id: FeatureStatistics(
                feature_extractor.id, feature_extractor.name, feature_extractor.reference
            )
        }
        if feature_extractor is not None
        else {}
    )
    if reference is None:
        return found
    alike = [look for look in looks if isinstance(look, FeatureExtraction)]
    if reference.source is None:  # statistics of Inception's features
        alike = [look for look in alike if look.network is not feature_extractor]
    fresh = [FeatureExtraction(look.network, keep=look.keep) for look in alike]
    seen = reference_features(reference, fresh, batch=evaluation.batch, processes=processes, say=say)
    return found | {one.source: one for one in seen}


def computed(
    evaluation: EvaluationInputs, look: Extraction, gathering: FeatureAccumulator, reference: FeatureStatistics | None
) -> dict[str, float]:
    """The figures of one network."""
    if isinstance(look, ClipScoring):
        images, total = gathering.clip
        return {"clip": total / images}
    described = gathering.description()
    kept = [len(one.features) for one in (described, reference) if one is not None and one.features is not None]
    settings = Settings(kid_size=min([SUBSET, *kept]), device=evaluation.device)
    names = names_of(evaluation, "feature_extractor" if look.gathering.source == judge_id(evaluation) else "inception")
    rng = torch.Generator().manual_seed(evaluation.config.seed)
    own = ["fid" if name == "frechet" else name for name in names]
    return compute(own, described, reference, rng=rng, settings=settings)


def judge_id(evaluation: EvaluationInputs) -> str | None:
    return evaluation.feature_extractor.id if evaluation.feature_extractor is not None else None


def say(line: str) -> None:
    """For the reader, beside the table."""
    Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)

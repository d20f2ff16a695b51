"""`dmdistill evaluate`: quality and speed of a model, or quality of a set of images."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from dmdistill.commands.evaluate.compute import compute_values
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.inputs import Evaluation, open_evaluation
from dmdistill.commands.evaluate.tables import print_report
from dmdistill.commands.options import check
from dmdistill.commands.run_folder import setup_compute
from dmdistill.distributed.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group, local_device
from dmdistill.io.atomic import check_writable, write_json
from dmdistill.metrics.registry import METRICS, parse_metrics
from dmdistill.models.model import Model

__all__ = ["evaluate", "measure", "seconds_per_image"]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure, print the report, write it to config.json if given, and return it; {} on all processes but the first."""
    check_evaluate(config)
    with join_process_group() as processes:
        compute = replace(config.compute, device=local_device(config.compute.device))
        report = measure(open_evaluation(config, *setup_compute(compute)), processes)
        if processes.is_main:
            print_report(report)
            if config.json is not None:
                write_json(config.json, report)
        return report


def check_evaluate(config: EvaluateConfig) -> None:
    """Raise a ValueError where an option is not possible or lacks another, before anything is loaded."""
    check(config)
    metrics = parse_metrics(config.metrics) if config.metrics is not None else []
    if config.reference is None and (comparing := [name for name in metrics if METRICS[name].needs_reference]):
        raise ValueError(f"--metrics {comparing[0]} compares with real images: give them by --reference DATA")
    if "clip" in metrics and config.clip is None:
        raise ValueError("--metrics clip needs --clip MODEL, the folder or hub id of a CLIP model of transformers")
    for name in (name for name in metrics if METRICS[name].needs_prompts):
        if config.prompts is None:
            raise ValueError(f"--metrics {name} needs the images' prompts: give --prompts FILE, with one on each line")
        if config.skip_corrupt:
            raise ValueError(
                f"--skip-corrupt with --metrics {name}: images after a skipped one would get others' prompts"
            )
    if config.json is not None:
        check_writable(config.json)


def measure(evaluation: Evaluation, processes: ProcessGroup = SINGLE_PROCESS) -> dict[str, Any]:
    """Measure quality and speed; return the report on the first process, {} on the others.

    The report has model, evaluations_per_image, images (0 where none was needed), seconds_per_image, metrics (values by
    name), reference, compared_with (it in words, or the classifier's training images) and seed; what does not apply is
    None.
    """
    metrics, images = compute_values(evaluation, processes)
    if not processes.is_main:
        return {}
    model, config = evaluation.model, evaluation.config
    return {
        "model": evaluation.source.name,
        "evaluations_per_image": model.evaluations if model else None,
        "images": images,
        "seconds_per_image": seconds_per_image(model, batch=min(evaluation.batch, 100)) if model else None,
        "metrics": metrics,
        "reference": config.reference,
        "compared_with": describe_reference(evaluation) if metrics else None,
        "seed": config.seed if model else None,
    }


def describe_reference(evaluation: Evaluation) -> str | None:
    """Say what the images are compared with, with the number of images where it is known; None for nothing."""
    reference, classifier, texts = evaluation.reference, evaluation.classifier, []
    if reference is not None:
        count = reference.count if reference.statistics is None else reference.statistics.count
        texts.append(f"{reference.name} ({count} images)" if count else reference.name)
    compared = [name for name in evaluation.metrics_in("classifier") if not METRICS[name].needs_prompts]
    if classifier is not None and compared and (reference is None or not reference.source):
        count = classifier.reference.count
        texts.append(f"the {f'{count} ' if count else ''}images that {classifier.name} was trained on")
    return " and ".join(texts) or None


def seconds_per_image(model: Model, *, batch: int = 100, repeats: int = 3) -> float:
    """Time the generation of a batch and return the least of a few timings, after a warm-up, per image."""
    z, cond = model.sample_inputs(batch, rng=torch.Generator(model.device).manual_seed(0))
    timings = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.images(z, cond).sum().item()
        timings.append(time.perf_counter() - start)
    return min(timings[1:]) / batch

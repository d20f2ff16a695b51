"""`dmdistill evaluate`: quality and speed of a model, or the quality of a set of images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dmdistill.commands.evaluate.compute import compute_metrics
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.inputs import EvaluationInputs
from dmdistill.commands.run_folder import setup_compute
from dmdistill.distributed.process_group import join_process_group, local_device
from dmdistill.io.atomic import check_writable, write_json
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.metrics.requirements import METRICS, asked, rounded
from dmdistill.models.model import Model

__all__ = ["evaluate", "measure", "print_table", "seconds_per_image"]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the figures; write them to config.json where asked. Of several processes, the first answers with them."""
    check(config)
    with join_process_group() as processes:
        compute = replace(config.compute, device=local_device(config.compute.device))
        evaluation = EvaluationInputs(config, *setup_compute(compute))
        metrics, images = compute_metrics(evaluation, processes)
        if not processes.is_main:
            return {}
        model = evaluation.model
        report = {
            "model": evaluation.source.name,
            "evaluations_per_image": model.evaluations if model else None,
            "images": images,
            "seconds_per_image": seconds_per_image(model, batch=min(evaluation.batch, 100)) if model else None,
            "metrics": metrics,
            "reference": config.reference,
            "seed": config.seed if model else None,
        }
        print_figures(report)
        if config.json is not None:
            write_json(config.json, report)
        return report


def check(config: EvaluateConfig) -> None:
    """ValueError where a setting cannot be, before anything is loaded."""
    for name, least in (("images", 2), ("batch", 1), ("side", 1), ("seed", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}, expected at least {least}")
    names = asked(config.metrics) if config.metrics is not None else []
    if config.reference is None and (needy := [name for name in names if METRICS[name].compared]):
        raise ValueError(f"--metrics {needy[0]} compares with real images: give them by --reference DATA")
    if "clip" in names and config.clip is None:
        raise ValueError("--metrics clip needs --clip FOLDER, a CLIP model of transformers' or its hub id")
    if "clip" in names and config.prompts is None:
        raise ValueError("--metrics clip needs what the images show: give --prompts FILE, one a line")
    if "clip" in names and config.skip_corrupt:
        raise ValueError("--skip-corrupt with clip: the pictures behind a damaged one would meet others' prompts")
    if config.json is not None:
        check_writable(config.json)


def measure(model: Model, batches: Iterator[Tensor], *, images: int, batch: int = 100) -> dict[str, Any]:
    """{"model", "evaluations_per_image", "images", "seconds_per_image", "metrics": {...}} of its images in batches.

    Without a judge no image is drawn, and "images" is 0. batch: images drawn at once to take the time.
    """
    feature_extractor = (
        load_classifier_features(model.feature_extractor, model.device) if model.feature_extractor else None
    )
    return {
        "model": model.name,
        "evaluations_per_image": model.evaluations,
        "images": images if feature_extractor else 0,
        "seconds_per_image": seconds_per_image(model, batch=min(batch, 100)),
        "metrics": {f"frechet_{feature_extractor.name}": rounded(feature_extractor.distance(batches))}
        if feature_extractor
        else {},
    }


def seconds_per_image(model: Model, *, batch: int = 100, repeats: int = 3) -> float:
    """The least of a few timings of one warm batch, divided by its images."""
    z, cond = model.sample_inputs(batch, rng=torch.Generator(model.device).manual_seed(0))
    timings = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.images(z, cond).sum().item()
        timings.append(time.perf_counter() - start)
    return min(timings[1:]) / batch


def print_figures(report: dict[str, Any]) -> None:
    """One model's, one below the other: there may be many."""
    table = Table("", report["model"])
    if report["images"]:
        table.add_row("images", str(report["images"]))
    for name, value in report["metrics"].items():
        table.add_row(name.replace("_", " ", 1), f"{value:.4g}")
    if report["seconds_per_image"] is not None:
        table.add_row("evaluations/image", str(report["evaluations_per_image"]))
        table.add_row("ms/image", f"{1e3 * report['seconds_per_image']:.3f}")
    Console().print(table)


def print_table(reports: list[dict[str, Any]]) -> None:
    """One row per model, and how the last compares with the first."""
    names = list(dict.fromkeys(name for report in reports for name in report["metrics"]))
    table = Table("model", "evaluations/image", *(name.replace("_", " ", 1) for name in names), "ms/image")
    for report in reports:
        figures = [f"{report['metrics'][name]:.4g}" if name in report["metrics"] else "-" for name in names]
        table.add_row(
            report["model"],
            str(report["evaluations_per_image"]),
            *figures,
            f"{1e3 * report['seconds_per_image']:.3f}",
        )
    if len(reports) > 1:
        first, last = reports[0], reports[-1]
        ratios = [f"{last['metrics'][name] / first['metrics'][name]:.2f} x" for name in names]
        speed = first["seconds_per_image"] / last["seconds_per_image"]
        table.add_row("ratio", "", *ratios, f"{speed:.1f} x faster")
    Console().print(table)

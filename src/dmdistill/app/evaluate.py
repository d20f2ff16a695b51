"""`dmdistill evaluate`: quality and speed of a model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dmdistill.app.config import Evaluate
from dmdistill.app.drawn import draw
from dmdistill.app.prompts import with_prompts
from dmdistill.app.run import start_machine
from dmdistill.files import write_json
from dmdistill.metrics.judge import load_judge
from dmdistill.teachers.load import load_model
from dmdistill.teachers.model import Model

__all__ = ["at_once", "evaluate", "measure", "print_table", "seconds_per_image"]

DRAWING = "drawing images"


def evaluate(config: Evaluate) -> dict[str, Any]:
    """Print a model's figures; write them to config.json where asked."""
    if config.images < 2 or config.batch < 1:
        raise ValueError(f"--images {config.images} --batch {config.batch}, expected at least 2 and 1")
    device, precision = start_machine(config.machine)
    model = with_prompts(load_model(config.model), config.prompts, device=device)
    model.to(device, precision)
    drawn = draw(model, config.images, batch=config.batch, seed=config.seed, name=DRAWING)
    report = measure(model, drawn, images=config.images, batch=config.batch)
    print_table([report])
    if config.json is not None:
        write_json(config.json, report)
    return report


def measure(model: Model, batches: Iterator[Tensor], *, images: int, batch: int = 100) -> dict[str, Any]:
    """{"model", "evaluations_per_image", "images", "seconds_per_image", "metrics": {...}} of its images in batches.

    batch: images drawn at once to take the time.
    """
    judge = load_judge(model.judge, model.device) if model.judge else None
    return {
        "model": model.name,
        "evaluations_per_image": model.evaluations,
        "images": images,
        "seconds_per_image": seconds_per_image(model, batch=min(batch, 100)),
        "metrics": {f"frechet_{judge.name}": judge.distance(batches)} if judge else {},
    }


def at_once(model: Model, batch: int) -> int:
    """How many images to draw at once: 500 small ones, fewer large ones; of latents at most a training step's batch."""
    if model.codec is not None:
        return min(batch, 16)
    return max(1, min(500, 500 * 3 * 64 * 64 // math.prod(model.shape)))


def seconds_per_image(model: Model, *, batch: int = 100, repeats: int = 3) -> float:
    """The least of a few timings of one warm batch, divided by its images."""
    z, cond = model.noise(batch, rng=torch.Generator(model.device).manual_seed(0))
    timings = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.images(z, cond).sum().item()
        timings.append(time.perf_counter() - start)
    return min(timings[1:]) / batch


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

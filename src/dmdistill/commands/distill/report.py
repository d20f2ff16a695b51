"""Pictures of a run: its curves, and its student beside its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.data.image_tensors import to_uint8
from dmdistill.io.atomic import atomic_write
from dmdistill.models.model import Model
from dmdistill.training.metrics_log import read_metrics

__all__ = ["draw_comparison", "draw_curves"]


def draw_curves(folder: Path) -> None:
    """Write report.png from a run's metrics.jsonl: one panel per question that the run has an answer to."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    panels = {
        "Frechet distance": [key for key in all_keys(rows) if key.startswith("frechet_")],
        "losses": [key for key in all_keys(rows) if key.startswith("loss")],
        "gradient norms": [key for key in all_keys(rows) if key.startswith("gradient_")],
        "gap |mu_fake - mu_real| per noise bin": [f"gap_{i}" for i in range(BINS)],
        "fake-score loss per noise bin": [f"fake_loss_{i}" for i in range(BINS)],
        "samples' mean and std": ["sample_mean", "sample_std"],
    }
    panels = {title: keys for title, keys in panels.items() if any(key in row for row in rows for key in keys)}
    height = -(-len(panels) // 3) or 1
    figure = Figure(figsize=(15, 4 * height), layout="constrained")
    every = figure.subplots(height, 3, squeeze=False).flat
    for axes in [*every][len(panels) :]:
        axes.remove()
    for axes, (title, keys) in zip(figure.axes, panels.items(), strict=True):
        for i, key in enumerate(keys):
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                color = f"C{i}" if len(keys) < BINS else (i / BINS, 0.2, 1 - i / BINS)
                axes.plot(*zip(*points, strict=True), marker=".", markersize=4, label=key, color=color)
        if title != "samples' mean and std":
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.legend(fontsize="small")
    with atomic_write(folder / "report.png") as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def draw_comparison(
    file: Path, teacher: Model, student: Model, reports: list[dict[str, Any]], *, columns: int = 10, batch: int = 500
) -> None:
    """Rows of the teacher's images, each over the student's from the same noise and labels, drawn in batches."""
    from matplotlib.figure import Figure

    rng = torch.Generator(teacher.device).manual_seed(1234)
    z, cond = teacher.sample_inputs(3 * columns, rng=rng)
    if teacher.conditions is not None:
        cond = teacher.condition(torch.arange(3 * columns) % len(teacher.conditions))
    parts = [slice(start, start + batch) for start in range(0, len(z), batch)]
    told = [(z[part], cond[part] if cond is not None else None) for part in parts]
    rows = [torch.cat([model.images(*few) for few in told]).split(columns) for model in (teacher, student)]
    figure = Figure(figsize=(columns * 0.9 + 2.2, 6 * 0.9 + 0.3), layout="constrained")
    for i, axes in enumerate(figure.subplots(6, 1)):
        who, report = i % 2, reports[i % 2]
        axes.imshow(side_by_side(rows[who][i // 2]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        text = f"{('teacher', 'student')[who]}\n{report['evaluations_per_image']} eval."
        axes.set_ylabel(text, rotation=0, ha="right", va="center")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def side_by_side(images: Tensor) -> Any:
    """B C H W -> H, B W (, C) as bytes."""
    row = torch.cat(list(to_uint8(images).cpu()), dim=2)
    return row[0].numpy() if len(row) == 1 else row.permute(1, 2, 0).numpy()


def all_keys(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))

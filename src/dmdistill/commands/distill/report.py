"""The final report of a run: its student measured beside its teacher, and pictures of both and of the run's curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.distill.validation_metric import reference_side
from dmdistill.commands.evaluate.command import measure
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.generated_images import GeneratedImages
from dmdistill.commands.evaluate.inputs import open_evaluation
from dmdistill.commands.evaluate.tables import print_comparison
from dmdistill.data.image_tensors import to_uint8
from dmdistill.data.pairs import PairDataset
from dmdistill.io.atomic import atomic_write, write_json
from dmdistill.io.checksums import add_checksum
from dmdistill.models.model import Model, Student, Teacher
from dmdistill.training.metrics_log import read_metrics

__all__ = ["curves_figure", "draw_comparison", "draw_curves", "write_report"]

LINEAR = ("samples' mean, std and saturation", "accuracy of the discriminator")  # panels without a logarithmic axis


def write_report(
    config: DistillConfig,
    teacher: Teacher,
    student: Student,
    pairs: PairDataset | None,
    *,
    batch: int,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Measure student and teacher as `dmdistill evaluate` does; write report.json, report.png and comparison.png.

    Args:
        config: of the run.
        teacher: on its device.
        student: on its device.
        pairs: the run's, or None. Those that the run made are used as the teacher's images.
        batch: images generated at once.
        seconds: that the distillation took.
        say: prints a line.
    """
    count = config.evaluation.report_images
    reference = config.evaluation.reference
    side = reference_side(teacher, teacher.device) if reference is not None else None
    settings = EvaluateConfig(
        str(config.out), reference=reference, images=count, batch=batch, side=side, seed=config.seed + 3
    )
    teacher_images = TeacherImages(
        GeneratedImages(teacher, count, seed=settings.seed), pairs if config.pair_set.pairs is None else None
    )
    reports = []
    for model, source in ((teacher, teacher_images), (student, None)):
        precision = model.denoiser.precision
        reports.append(measure(open_evaluation(settings, model.device, precision, model=model, source=source)))
    durations = {"distillation": seconds}
    if pairs is not None and pairs.seconds_per_image is not None:
        durations["pairs"] = pairs.seconds_per_image * len(pairs)
    results = {"teacher": reports[0], "student": reports[1], "seconds": durations}
    write_json(config.out / "report.json", add_checksum(results))
    draw_curves(config.out)
    draw_comparison(config.out / "comparison.png", {"teacher": teacher, "student": student}, batch=batch)
    print_comparison(reports)
    say(f"distilled in {seconds / 60:.1f} min; student in {config.out / 'student'}")
    say(f"teacher and student side by side: {config.out / 'comparison.png'}; curves: {config.out / 'report.png'}")


class TeacherImages:
    """The `ImageSource` of a teacher's images: those of pairs first, which are there already, then generated ones.

    Args:
        generated: as many as are needed without pairs.
        pairs: of the same teacher, or None.
    """

    def __init__(self, generated: GeneratedImages, pairs: PairDataset | None) -> None:
        self.generated, self.pairs, self.name = generated, pairs, generated.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """C H W of every image."""
        return self.generated.shape

    def __len__(self) -> int:
        return len(self.generated)

    def digest(self) -> str:
        """Hash everything that decides the images."""
        pairs = asdict(self.pairs.settings) if self.pairs is not None else None
        return hashlib.sha256(json.dumps([self.generated.digest(), pairs], default=str).encode()).hexdigest()

    @torch.no_grad()
    def images(self, rows: range) -> Tensor:
        """Return the images of these numbers: uint8, B C H W."""
        paired = len(self.pairs) if self.pairs is not None else 0
        stored, rest = range(rows.start, min(rows.stop, paired)), range(max(rows.start, paired), rows.stop)
        images = []
        if self.pairs is not None and stored:
            teacher = self.generated.model
            images.append(to_uint8(teacher.decode(self.pairs[stored][1].to(teacher.device))).cpu())
        if rest:
            images.append(self.generated.images(range(rest.start - paired, rest.stop - paired)).cpu())
        return torch.cat(images)


def draw_curves(folder: Path) -> None:
    """Draw report.png from a run's metrics.jsonl."""
    figure = curves_figure(read_metrics(folder))
    with atomic_write(folder / "report.png") as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def curves_figure(rows: Sequence[dict[str, float]]) -> Any:
    """Plot the rows of a run's log: a matplotlib figure, with a panel for each kind of value that was measured."""
    from matplotlib.figure import Figure

    panels = {
        "Frechet distance": [key for key in all_keys(rows) if key.startswith("frechet_")],
        "losses": [key for key in all_keys(rows) if key.startswith("loss")],
        "gradient norms": [key for key in all_keys(rows) if key.startswith("gradient_")],
        "gap |mu_fake - mu_real| per noise bin": [f"gap_{i}" for i in range(BINS)],
        "fake-score loss per noise bin": [f"fake_loss_{i}" for i in range(BINS)],
        LINEAR[0]: [
            "sample_mean",
            "sample_std",
            "sample_saturation",
            "teacher_mean",
            "teacher_std",
            "teacher_saturation",
        ],
        "lag of the fake score": ["fake_lag"],
        LINEAR[1]: ["accuracy_real", "accuracy_generated"],
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
                style = "--" if key.startswith("teacher_") else "-"
                axes.plot(*zip(*points, strict=True), style, marker=".", markersize=4, label=key, color=color)
        if title not in LINEAR:
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.legend(fontsize="small")
    return figure


def draw_comparison(
    file: Path, models: Mapping[str, Model], *, rows: int = 3, columns: int = 10, batch: int = 500
) -> None:
    """Draw images of several models, those of the same noise and conditions below one another.

    Args:
        file: to write, a PNG.
        models: on their device, by the words that stand beside their images; noise and conditions are the first one's.
        rows: of each of them.
        columns: images in a row.
        batch: images generated at once.
    """
    from matplotlib.figure import Figure

    count, first = rows * columns, next(iter(models.values()))
    z, cond = first.sample_inputs(count, rng=torch.Generator(first.device).manual_seed(1234))
    if first.conditions is not None:
        cond = first.condition(torch.arange(count) % len(first.conditions))
    parts = [slice(start, start + batch) for start in range(0, count, batch)]
    inputs = [(z[part], cond[part] if cond is not None else None) for part in parts]
    images = [torch.cat([model.images(*one) for one in inputs]).split(columns) for model in models.values()]
    lines = len(models) * rows
    labels = [f"{name}\n{model.evaluations} eval." for name, model in models.items()]
    figure = Figure(figsize=(columns * 0.9 + 2.2, lines * 0.9 + 0.3), layout="constrained")
    for i, axes in enumerate(figure.subplots(lines, 1)):
        row, model = divmod(i, len(models))
        axes.imshow(side_by_side(images[model][row]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(labels[model], rotation=0, ha="right", va="center")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def side_by_side(images: Tensor) -> Any:
    """Join images, B C H W, to one uint8 array, H, B W (, C)."""
    row = torch.cat(list(to_uint8(images).cpu()), dim=2)
    return row[0].numpy() if len(row) == 1 else row.permute(1, 2, 0).numpy()


def all_keys(rows: Sequence[dict[str, float]]) -> list[str]:
    """List the keys of all rows, each once."""
    return list(dict.fromkeys(key for row in rows for key in row))

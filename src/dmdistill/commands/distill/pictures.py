"""The pictures of a run's report: its curves, and images of several models below one another."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dmdistill.commands.distill.diagnostics import BINS
from dmdistill.commands.evaluate.generated_images import image_shape
from dmdistill.data.image_tensors import to_uint8
from dmdistill.io.atomic import atomic_write
from dmdistill.models.model import Model
from dmdistill.training.metrics_log import read_metrics

__all__ = ["curves_figure", "draw_comparison", "draw_curves"]

FRECHET = "Frechet distance"
LINEAR = ("samples' mean, std and saturation", "accuracy of the discriminator")  # panels without a logarithmic axis
BINNED = ("gap |mu_fake - mu_real| per noise bin", "fake-score loss per noise bin")  # panels of curves in an order
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, without black and yellow
IN_ORDER = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#882255")  # the last is Tol's
MARKERS = "os^DvP*X"
LOGARITHMIC = 5.0  # ratio of the largest to the least value from which an axis is logarithmic
LEAST_SIDE, MOST_SIDE, WIDEST = 90, 512, 2600  # pixels of an image and of all beside one another
DPI = 100
LETTER = 6  # pixels of a letter of a caption, about


def draw_curves(folder: Path) -> None:
    """Draw report.png from a run's metrics.jsonl."""
    figure = curves_figure(read_metrics(folder))
    with atomic_write(folder / "report.png") as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def curves_figure(rows: Sequence[dict[str, float]]) -> Any:
    """Plot the rows of a run's log: a matplotlib figure, with a panel for each kind of value that was measured.

    A log of one row, of a run shorter than --log-every, makes points with their values beside them.
    """
    from matplotlib.figure import Figure

    panels = find_panels(rows)
    height = -(-len(panels) // 3) or 1
    figure = Figure(figsize=(17, 4 * height), layout="constrained")
    every = figure.subplots(height, 3, squeeze=False).flat
    for axes in [*every][len(panels) :]:
        axes.remove()
    for axes, (title, keys) in zip(figure.axes, panels.items(), strict=True):
        draw_panel(axes, title, keys, rows)
    if len(rows) < 2:
        count = "One row in metrics.jsonl: points in place of curves" if rows else "No row in metrics.jsonl"
        figure.suptitle(f"{count} (--log-every sets the number of steps between rows)")
    return figure


def find_panels(rows: Sequence[dict[str, float]]) -> dict[str, list[str]]:
    """Return the keys of the values in each panel, by its title; no panel where there are too few values."""
    panels = {
        FRECHET: [key for key in all_keys(rows) if key.startswith("frechet_")],
        "losses": [key for key in all_keys(rows) if key.startswith("loss")],
        "gradient norms": [key for key in all_keys(rows) if key.startswith("gradient_")],
        BINNED[0]: [f"gap_{i}" for i in range(BINS)],
        BINNED[1]: [f"fake_loss_{i}" for i in range(BINS)],
        LINEAR[0]: [f"{who}_{what}" for who in ("sample", "teacher") for what in ("mean", "std", "saturation")],
        "lag of the fake score": ["fake_lag"],
        LINEAR[1]: ["accuracy_real", "accuracy_generated"],
    }
    least = max(min(len(rows), 2), 1)  # points of a curve; of a distance one says something too
    counts = {
        title: max([sum(key in row for row in rows) for key in keys], default=0) for title, keys in panels.items()
    }
    return {title: panels[title] for title, count in counts.items() if count >= (1 if title == FRECHET else least)}


def draw_panel(axes: Any, title: str, keys: Sequence[str], rows: Sequence[dict[str, float]]) -> None:
    """Draw the curves of a panel and, beside it, their legend; its axis is logarithmic where the values differ much.

    Of a single row the points stand side by side in the order of the legend, which has their values.
    """
    curves = {key: [(row["step"], row[key]) for row in rows if key in row] for key in keys}
    curves = {key: points for key, points in curves.items() if points}
    for i, (key, points) in enumerate(curves.items()):
        look = line_style(title, keys, key)
        if len(rows) == 1:
            value, marker = points[0][1], MARKERS[i % len(MARKERS)]
            axes.plot(i, value, marker, markersize=8, color=look["color"], label=f"{key} = {value:.3g}")
        else:
            size = 4 if len(points) > 1 else 10
            axes.plot(*zip(*points, strict=True), marker=".", markersize=size, label=key, **look)
    if len(rows) == 1:
        axes.set_xlim(-1, len(curves))
        axes.set_xticks([(len(curves) - 1) / 2], [f"{rows[0]['step']:g}"])
    else:
        axes.set_xlim(0, 1.03 * rows[-1]["step"])
    drawn = [value for points in curves.values() for _, value in points if math.isfinite(value)]
    if title not in LINEAR and drawn and min(drawn) > 0 and max(drawn) > LOGARITHMIC * min(drawn):
        axes.set_yscale("log")
    axes.set_title(title)
    axes.set_xlabel("step")
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "frameon": False}
    head = "bin 0: least noise" if title in BINNED else None
    axes.legend(title=head, fontsize="small", title_fontsize="small", alignment="left", **beside)


def line_style(title: str, keys: Sequence[str], key: str) -> dict[str, str]:
    """Return the colour and the line of a curve among those of its panel, which the colour-blind can tell apart too.

    A teacher's line has the colour of the student's, and is dashed.
    """
    if title in BINNED:
        return {"color": IN_ORDER[keys.index(key) % len(IN_ORDER)], "linestyle": "-"}
    names = list(dict.fromkeys(one.removeprefix("teacher_").removeprefix("sample_") for one in keys))
    turn, number = divmod(names.index(key.removeprefix("teacher_").removeprefix("sample_")), len(COLORS))
    return {"color": COLORS[number], "linestyle": "--" if key.startswith("teacher_") else ("-", ":", "-.")[turn % 3]}


def draw_comparison(
    file: Path, models: Mapping[str, Model], *, rows: int = 3, columns: int = 10, batch: int = 500
) -> None:
    """Draw images of several models, those of the same noise and conditions below one another.

    Args:
        file: to write, a PNG.
        models: on their device, by the words that stand beside their images; noise and conditions are the first one's.
        rows: of each of them.
        columns: images in a row at most; fewer large ones.
        batch: images generated at once.
    """
    from matplotlib.figure import Figure

    first = next(iter(models.values()))
    shape = image_shape(first)
    cell = min(max(shape[1:]), MOST_SIDE)
    columns, cell = min(columns, max(WIDEST // cell, 1)), max(cell, LEAST_SIDE)
    count = rows * columns
    z, cond = first.sample_inputs(count, rng=torch.Generator(first.device).manual_seed(1234))
    if first.conditions is not None:
        cond = first.condition(torch.arange(count) % len(first.conditions))
    parts = [slice(start, start + batch) for start in range(0, count, batch)]
    inputs = [(z[part], cond[part] if cond is not None else None) for part in parts]
    images = [torch.cat([model.images(*one) for one in inputs]).split(columns) for model in models.values()]
    texts = captions(first, count, letters=cell // LETTER)
    lines = len(models) * rows
    labels = [f"{name}\n{model.evaluations} eval." for name, model in models.items()]
    height = lines * (cell + 8) + rows * 14 * max((text.count("\n") + 1 for text in texts), default=0)
    figure = Figure(figsize=(columns * (cell + 6) / DPI + 1.4, height / DPI + 0.3), layout="constrained")
    for i, axes in enumerate(figure.subplots(lines, 1)):
        row, model = divmod(i, len(models))
        picture, middles = side_by_side(images[model][row])
        axes.imshow(
            picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if cell > shape[1] else "antialiased"
        )
        axes.tick_params(length=0, labelsize=7)
        axes.xaxis.tick_top()
        axes.set_xticks(middles, texts[row * columns :][:columns] if texts and model == 0 else [""] * columns)
        axes.set_yticks([])
        axes.set_frame_on(False)
        axes.set_ylabel(labels[model], rotation=0, ha="right", va="center")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def captions(model: Model, count: int, *, letters: int) -> list[str]:
    """Return the classes or prompts of images in turn, each in at most three lines of so many letters; [] for none."""
    conditions: Any = model.conditions
    names = getattr(conditions, "names", None) or getattr(conditions, "texts", None) or []
    texts = [textwrap.shorten(str(name), 3 * letters - 3, placeholder=" ...") for name in names[:count]]
    wrapped = ["\n".join(textwrap.wrap(text, letters)) for text in texts]
    return [wrapped[i % len(wrapped)] for i in range(count)] if wrapped else []


def side_by_side(images: Tensor) -> tuple[Any, list[float]]:
    """Join images, B C H W, with white gaps to one uint8 array, H, width (, C); return it and the middles of images."""
    gap = max(images.shape[3] // 16, 1)
    padded = F.pad(to_uint8(images).cpu(), (0, gap), value=255)
    row = torch.cat(list(padded), dim=2)
    middles = [i * padded.shape[3] + images.shape[3] / 2 - 0.5 for i in range(len(images))]
    return (row[0] if len(row) == 1 else row.permute(1, 2, 0)).numpy(), middles


def all_keys(rows: Sequence[dict[str, float]]) -> list[str]:
    """List the keys of all rows, each once."""
    return list(dict.fromkeys(key for row in rows for key in row))

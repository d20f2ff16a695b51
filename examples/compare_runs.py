"""Curves and samples of several runs side by side: which of them is healthy?

python examples/compare_runs.py runs/one runs/other --out compared.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from dmdistill.training.metrics_log import read_metrics

Row = Mapping[str, float]


def mean_of(prefix: str) -> Callable[[Row], float]:
    """Return the function of a row that is the mean of the metrics whose names start so; KeyError without any."""

    def mean(row: Row) -> float:
        values = [value for key, value in row.items() if key.startswith(prefix)]
        if not values:
            raise KeyError(prefix)
        return fmean(values)

    return mean


def accuracy(row: Row) -> float:
    """Return the share of the kind of image, real or generated, that the discriminator tells worse."""
    return min(row["accuracy_real"], row["accuracy_generated"])


PANELS: dict[str, tuple[Callable[[Row], float], bool]] = {
    "Fréchet distance": (mean_of("frechet_"), True),
    "loss_kl": (mean_of("loss_kl"), True),
    "loss_sid": (mean_of("loss_sid"), False),
    "gradient_generator": (mean_of("gradient_generator"), True),
    "gap, mean of the noise levels": (mean_of("gap_"), True),
    "fake_lag": (mean_of("fake_lag"), True),
    "sample_mean (dashed: the teacher's)": (mean_of("sample_mean"), False),
    "accuracy of the discriminator": (accuracy, False),
}
"""Title of a panel -> the value of a row of metrics.jsonl, and whether the axis is logarithmic."""


def series(rows: Sequence[Row], value: Callable[[Row], float]) -> list[tuple[float, float]]:
    """Return steps and values of the rows that have the value."""
    points = []
    for row in rows:
        try:
            points.append((row["step"], value(row)))
        except KeyError:
            continue
    return points


def draw_panel(axes: Any, title: str, runs: Mapping[str, Sequence[Row]]) -> None:
    """Draw one value of all runs over their steps; of the brightness the teacher's beside it."""
    value, logarithmic = PANELS[title]
    for name, rows in runs.items():
        if points := series(rows, value):
            axes.plot(*zip(*points, strict=True), marker=".", markersize=4, label=name)
    if "sample_mean" in title and (
        means := [row["teacher_mean"] for row in next(iter(runs.values())) if "teacher_mean" in row]
    ):
        axes.axhline(means[-1], color="black", linestyle="--", linewidth=1)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)


def compare(folders: Sequence[Path], out: Path, *, columns: int = 4, rows: int = 4) -> None:
    """Draw the panels that any of the runs has, and below them the first rows of each run's last sample grid.

    Args:
        folders: of the runs; their names are the labels.
        out: the picture to write.
        columns: panels in a row.
        rows: of each grid.
    """
    runs = {folder.name: read_metrics(folder) for folder in folders}
    titles = [title for title, (value, _) in PANELS.items() if any(series(log, value) for log in runs.values())]
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.1 * lines + 1.9), layout="constrained")
    curves, grids = figure.subfigures(2, 1, height_ratios=(2.1 * lines, 1.9))
    panels = [*curves.subplots(lines, columns, squeeze=False).flat]
    for axes, title in zip(panels, titles, strict=False):
        draw_panel(axes, title, runs)
    panels[0].legend(fontsize=8)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    for axes, folder in zip(grids.subplots(1, len(folders), squeeze=False).flat, folders, strict=True):
        draw_samples(axes, folder, rows)
    figure.savefig(out, dpi=80)


def draw_samples(axes: Any, folder: Path, rows: int) -> None:
    """Draw the first rows of the last sample grid of a run, which has eight columns."""
    axes.set_axis_off()
    if files := sorted((folder / "samples").glob("step-*.png")):
        with Image.open(files[-1]) as grid:
            axes.imshow(grid.crop((0, 0, grid.width, min(grid.height, rows * grid.width // 8))), cmap="gray")
        axes.set_title(f"{folder.name}, step {int(files[-1].stem.removeprefix('step-'))}", fontsize=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("compared.png"), help="picture to write")
    options = parser.parse_args()
    compare(options.runs, options.out)

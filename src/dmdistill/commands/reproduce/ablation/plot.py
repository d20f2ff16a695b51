"""The plot of an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmdistill.io.atomic import atomic_write

__all__ = ["plot_ablation"]

TITLES = {"frechet": "Fréchet distance in the classifier's features", "recall": "recall"}


def plot_ablation(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw distance and recall of each row: a bar to the mean, a dot for each seed, a line at the teacher's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    teacher, *students = rows
    figure = Figure(figsize=(9, 1 + 0.5 * len(students)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (key, title) in zip(panels, TITLES.items(), strict=True):
        axes.barh(range(len(students)), [row[key]["mean"] for row in students], color="C0", alpha=0.4)
        for i, row in enumerate(students):
            axes.plot(row[key]["values"], [i] * len(row[key]["values"]), "o", color="C0", markersize=4)
        axes.set_title(title, fontsize="medium")
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # few labels, in plain digits, for any range
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter("")
    panels[0].axvline(teacher["frechet"]["mean"], color="black", linestyle=":")
    panels[0].set_yticks(range(len(students)), [row["row"] for row in students])
    panels[0].invert_yaxis()
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)

"""The plot of Fig. 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dmdistill.commands.reproduce.fig3.experiment import FULL_RANGE, LOW_NOISE, TRIALS, Trajectory, merging_sigma
from dmdistill.commands.reproduce.tables import format_cell
from dmdistill.io.atomic import atomic_write
from dmdistill.models.gaussian_mixture import GaussianMixture

__all__ = ["plot_fig3"]

REAL, FAKE, INK = "#1f6f8b", "#d1495b", "#333333"
LEFT, RIGHT, BOTTOM, TOP = -1.2, 1.2, -0.6, 0.85
PATHS, POINTS = 16, 400  # samples that are drawn in a panel
CAPTION = "numbers: share of the samples within 3 std of each mode, over the seeds; paths and points: of the first seed"


def plot_fig3(
    file: Path, trajectories: Sequence[Trajectory], rows: Sequence[Mapping[str, Any]], real: GaussianMixture
) -> None:
    """Draw the losses at low noise and at the full noise range, and (b)'s mode coverage by range, of all TRIALS."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.9, 1))[0]
    shown = [i for i, (_, high) in enumerate(TRIALS) if high in (LOW_NOISE, FULL_RANGE)]
    panels = left.subplots(2, 3, sharex=True, sharey=True)
    for axes, i in zip(panels.flat, shown, strict=True):
        draw_density(axes, real)
        draw_trajectory(axes, trajectories[i])
        for x, side in zip(real.means[:, 0].tolist(), ("left", "right"), strict=True):
            axes.text(x, -0.5, format_cell(rows[i][f"share {side}"], ".2f"), ha="center", color=REAL, fontsize=11)
        if axes in panels[0]:
            axes.set_title(rows[i]["loss"], fontsize=13, color=INK)
        if axes in panels[:, 0]:
            axes.set_ylabel(f"$\\sigma$ up to {rows[i]['largest sigma']:.2g}", fontsize=13, color=INK)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    left.supxlabel(CAPTION, fontsize=11, color=INK)
    panels[0, 0].legend(handles, labels, loc="upper right", frameon=False, fontsize=10, handletextpad=0.1)
    draw_coverage(right.subplots(), [row for row in rows if row["loss"].startswith("(b)")], real)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=75)


def draw_coverage(axes: Any, rows: Sequence[Mapping[str, Any]], real: GaussianMixture) -> None:
    """Draw (b)'s share of each mode against the largest sigma, and the sigma where the diffused modes merge."""
    sigmas = [row["largest sigma"] for row in rows]
    for side, color in (("left", INK), ("right", FAKE)):
        heights, errors = ([row[f"share {side}"][key] or 0 for row in rows] for key in ("mean", "std"))
        axes.errorbar(sigmas, heights, errors, color=color, marker="o", markersize=5, capsize=3, label=f"{side} mode")
    axes.axvline(merging_sigma(real), color=REAL, linestyle="--", linewidth=1.2, label="blurred modes merge")
    axes.set_xscale("log")
    axes.set_ylim(-0.04, 1.04)
    axes.set_title("(b): share of each mode", fontsize=13, color=INK)
    axes.set_xlabel("largest $\\sigma$ that is matched", fontsize=12, color=INK)
    axes.legend(loc="upper right", frameon=False, fontsize=11)
    style_axes(axes)


def draw_density(axes: Any, real: GaussianMixture) -> None:
    """Draw filled contours at 1, 2 and 3 std of the modes."""
    x, y = torch.meshgrid(torch.linspace(LEFT, RIGHT, 221), torch.linspace(BOTTOM, TOP, 146), indexing="xy")
    points = torch.stack([x.flatten(), y.flatten()], 1)
    height = real.log_prob(points, torch.zeros(len(points))).exp().reshape(x.shape)
    levels = [height.max().item() * factor for factor in (0.0111, 0.1353, 0.6065, 1.01)]
    axes.contourf(x, y, height, levels=levels, colors=["#dcebf0", "#b5d3dd", "#82b4c4"])
    axes.set(
        xlim=(LEFT, RIGHT), ylim=(BOTTOM, TOP), aspect="equal", xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-0.5, 0, 0.5)
    )
    style_axes(axes)


def style_axes(axes: Any) -> None:
    """Set the colours and sizes of an axis."""
    axes.tick_params(labelsize=10, color=INK, labelcolor=INK)
    axes.spines[:].set_color("#999999")


def draw_trajectory(axes: Any, trajectory: Trajectory) -> None:
    """Draw some samples' paths in grey from white points, and where the samples end in red."""
    paths = trajectory.snapshots[:, :PATHS, 0]
    axes.plot(*paths.unbind(-1), color=INK, linewidth=0.6, alpha=0.4)
    style = {"linewidths": 0.7, "zorder": 4}
    axes.scatter(*paths[0].T, s=16, facecolors="white", edgecolors=INK, label="start", **style)
    axes.scatter(*trajectory.samples[:POINTS, 0].T, s=7, color=FAKE, linewidths=0, zorder=3, label="end")

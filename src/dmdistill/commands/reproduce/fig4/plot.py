"""The plot of Fig. 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dmdistill.commands.reproduce.fig4.experiment import FAKE, REAL, diffused_densities
from dmdistill.commands.reproduce.tables import format_cell
from dmdistill.io.atomic import atomic_write

__all__ = ["plot_fig4"]

BLUE, RED, INK, PURPLE = "#1f6f8b", "#d1495b", "#333333", "#5b3a86"
PANEL_SIGMAS = (0.0, 0.1, 0.5, 2.0)


def plot_fig4(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw both densities at four noise levels, and below them overlap and gradient against the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15))[:, 0]
    for i, (axes, sigma) in enumerate(zip(above.subplots(1, len(PANEL_SIGMAS)), PANEL_SIGMAS, strict=True)):
        draw_densities(axes, next(row for row in rows if row["sigma"] == sigma), legend=i == 0)
    left, right = below.subplots(1, 2)
    draw_overlap(left, rows[1:])
    draw_gradient(right, rows[1:])
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=85)


def draw_densities(axes: Any, row: Mapping[str, Any], *, legend: bool) -> None:
    """Draw both densities and their overlap, with the mean gradient as text: no scale fits all panels."""
    sigma = row["sigma"]
    x, real, fake = undiffused_densities() if sigma == 0 else diffused_densities(sigma)
    for height, color, name in ((fake.exp(), RED, "fake"), (real.exp(), BLUE, "real")):
        axes.fill_between(x, height, color=color, alpha=0.25, linewidth=0)
        axes.plot(x, height, color=color, linewidth=1.3, label=name)
    axes.fill_between(x, torch.minimum(real, fake).exp(), color=PURPLE, alpha=0.55, linewidth=0, label="shared")
    reach = 1.2 + 2 * sigma
    axes.set(xlim=(-reach, reach), xticks=(-round(0.8 * reach), 0, round(0.8 * reach)), yticks=[])
    axes.set_ylim(0, axes.get_ylim()[1] * (1.45 if legend else 1.05))
    axes.set_title(f"$\\sigma$ = {sigma:g},  overlap {row['overlap']:.2g}", fontsize=12, color=INK)
    axes.set_xlabel(f"gradient {format_cell(row['gradient'], '.3g')}", fontsize=12, color=INK)
    if legend:
        axes.legend(loc="upper center", ncols=3, frameon=False, fontsize=10, columnspacing=1, handlelength=1.2)
        axes.set_ylabel("density", fontsize=12, color=INK)
    style_axes(axes)


def undiffused_densities() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a grid of points and the logarithms of both densities at sigma 0."""
    x = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)
    real, fake = (((x >= box.low) & (x <= box.high)) / (box.high - box.low) for box in (REAL, FAKE))
    return x, real.log(), fake.log()


def draw_overlap(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the overlap against sigma."""
    axes.plot([row["sigma"] for row in rows], [row["overlap"] for row in rows], color=PURPLE, marker="o", markersize=5)
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("overlap of real and fake", fontsize=11, color=INK)
    style_sigma_axes(axes)


def draw_gradient(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the gradient against sigma: a line from quadrature, points from samples, with error bars over the seeds."""
    sigmas = [row["sigma"] for row in rows]
    exact = [row["gradient"] for row in rows]
    axes.plot(sigmas, exact, color=INK, linewidth=1, label="mean of $|s_{fake} - s_{real}|$, exact")
    for name, color, label in (("sampled", RED, "the same, sampled"), ("with Eq. 8", BLUE, "with the weight of Eq. 8")):
        heights, errors = ([row[name][key] or 0 for row in rows] for key in ("mean", "std"))
        line = "none" if name == "sampled" else "-"
        axes.errorbar(sigmas, heights, errors, color=color, marker="o", markersize=5, linestyle=line, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("gradient", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=10)
    style_sigma_axes(axes)


def style_sigma_axes(axes: Any) -> None:
    """Set a logarithmic axis of sigma, a grid and the colours."""
    axes.set_xscale("log")
    axes.set_xlabel("noise $\\sigma$", fontsize=11, color=INK)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    style_axes(axes)


def style_axes(axes: Any) -> None:
    """Set the colours and sizes of an axis."""
    axes.tick_params(labelsize=10, color=INK, labelcolor=INK)
    axes.spines[:].set_color("#999999")

"""`dmdistill reproduce fig3`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.reproduce.fig3 import experiment
from dmdistill.commands.reproduce.fig3.experiment import LOSSES, TRIALS, Trajectory, mode_coverage
from dmdistill.commands.reproduce.fig3.plot import plot_fig3
from dmdistill.commands.reproduce.tables import print_rows, summarize_seeds
from dmdistill.commands.run_folder import setup_compute
from dmdistill.io.atomic import write_json
from dmdistill.models.gaussian_mixture import GaussianMixture, two_modes
from dmdistill.training.progress import progress_bar

__all__ = ["fig3"]


def fig3(config: ReproduceConfig) -> dict[str, Any]:
    """Train with every loss, write fig3.png and fig3.json into `config.out`, print and return the table.

    The seeds train independently, but share one stream of random numbers: another number of seeds changes every draw.
    """
    device, _ = setup_compute(dataclasses.replace(config.compute, precision="fp32"))
    steps = config.steps or experiment.STEPS
    initial = experiment.initialize(config.seeds, torch.Generator(device).manual_seed(0))
    trajectories: list[Trajectory] = []
    with progress_bar("fig3", len(TRIALS)) as advance:
        for loss, high in TRIALS:
            trajectories.append(experiment.train(initial, loss, high, steps=steps))
            advance(len(trajectories))
    real = two_modes()
    rows = tabulate(trajectories, real)
    merging = experiment.merging_sigma(real)
    table = {"figure": "fig3", "seeds": config.seeds, "steps": steps, "merging": merging, "rows": rows}
    plot_fig3(config.out / "fig3.png", trajectories, rows[1:], real)
    write_json(config.out / "fig3.json", table)
    print_rows(rows, config.out / "fig3.png")
    if steps < experiment.STEPS:
        print(f"The students have not converged: --steps {steps} of {experiment.STEPS}")
    return table


def tabulate(trajectories: list[Trajectory], real: GaussianMixture) -> list[dict[str, Any]]:
    """Build the table's rows: the mode coverage of samples of the density itself, then of each training run."""
    itself = mode_coverage(real.sample(experiment.FINAL_SAMPLES, torch.Generator().manual_seed(0)), real)
    rows: list[dict[str, Any]] = [{"loss": "the density itself", "largest sigma": "", **summarize_seeds([itself])}]
    for (loss, high), trajectory in zip(TRIALS, trajectories, strict=True):
        sigma = real.schedule.time(torch.tensor(round(high * real.schedule.bins))).item()
        coverage = summarize_seeds([mode_coverage(samples, real) for samples in trajectory.samples.unbind(1)])
        rows.append({"loss": f"({loss}) {LOSSES[loss]}", "largest sigma": sigma, **coverage})
    return rows

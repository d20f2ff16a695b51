"""`dmdistill reproduce fig3`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.reproduce.fig3.experiment import (
    LOSSES,
    MEASURED,
    STEPS,
    TRIALS,
    Course,
    begin,
    coverage,
    merging,
    train,
)
from dmdistill.commands.reproduce.tables import over_seeds, print_rows
from dmdistill.commands.run_folder import setup_compute
from dmdistill.io.atomic import write_json
from dmdistill.models.gaussian_mixture import GaussianMixture, two_modes
from dmdistill.training.progress import progress_bar

__all__ = ["fig3", "tabulate"]


def fig3(config: ReproduceConfig) -> dict[str, Any]:
    """Write fig3.png and fig3.json into config.out; print and return the table.

    The seeds are trained side by side and independent of one another, yet share one stream of random numbers: with
    another number of seeds the draws are others too.
    """
    from dmdistill.commands.reproduce.fig3.plot import draw

    device, _ = setup_compute(dataclasses.replace(config.compute, precision="fp32"))  # points need no other
    steps = config.steps or STEPS
    start = begin(config.seeds, torch.Generator(device).manual_seed(0))
    courses: list[Course] = []
    with progress_bar("fig3", len(TRIALS)) as advance:
        for loss, high in TRIALS:
            courses.append(train(start, loss, high, steps=steps))
            advance(len(courses))
    real = two_modes()
    rows = tabulate(courses, real)
    table = {"figure": "fig3", "seeds": config.seeds, "steps": steps, "merging": merging(real), "rows": rows}
    draw(config.out / "fig3.png", courses, rows[1:], real)
    write_json(config.out / "fig3.json", table)
    print_rows(rows, config.out / "fig3.png")
    return table


def tabulate(courses: list[Course], real: GaussianMixture) -> list[dict[str, Any]]:
    """The coverage of samples of the density itself, then that of each training."""
    itself = coverage(real.sample(MEASURED, torch.Generator().manual_seed(0)), real)
    rows: list[dict[str, Any]] = [{"loss": "the density itself", "largest sigma": "", **over_seeds([itself])}]
    for (loss, high), course in zip(TRIALS, courses, strict=True):
        sigma = real.schedule.time(torch.tensor(round(high * real.schedule.bins))).item()
        measured = over_seeds([coverage(samples, real) for samples in course.samples.unbind(1)])
        rows.append({"loss": f"({loss}) {LOSSES[loss]}", "largest sigma": sigma, **measured})
    return rows

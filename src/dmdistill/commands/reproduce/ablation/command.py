"""`dmdistill reproduce ablation | weighting`: the paper's tables 2 and 3 for the bundled teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dmdistill.commands.reproduce.ablation.experiment import Experiment, prepare_experiment
from dmdistill.commands.reproduce.ablation.plot import plot_ablation
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.reproduce.tables import print_rows, summarize_seeds
from dmdistill.io.atomic import write_json

__all__ = ["ABLATION", "WEIGHTING", "ablation", "weighting"]

Variants = Mapping[str, Mapping[str, Any]]
"""Name of a row -> the settings in which it differs from the full objective."""

ABLATION: Variants = {  # table 2 of the paper, and DMD2's answer to its last row
    "full": {},
    "no-matching": {"match": False},
    "no-regression": {"lambda_reg": 0.0},
    "no-regression-5-to-1": {"lambda_reg": 0.0, "fake_steps": 5},
}
WEIGHTING: Variants = {"eq8": {}, "sigma": {"weight": "sigma"}, "sigma3": {"weight": "sigma3"}}  # table 3


def ablation(config: ReproduceConfig) -> dict[str, Any]:
    """Compare the full objective with either half of it, and with DMD2's 5:1 updates instead of the regression."""
    return run_variants(prepare_experiment(config), config, ABLATION)


def weighting(config: ReproduceConfig) -> dict[str, Any]:
    """Compare weights of the distribution-matching gradient: Eq. 8, sigma/alpha and sigma^3/alpha."""
    return run_variants(prepare_experiment(config), config, WEIGHTING)


def run_variants(experiment: Experiment, config: ReproduceConfig, variants: Variants) -> dict[str, Any]:
    """Distill the missing students, measure all, write the table and its plot, print and return the table."""
    teacher = {"frechet": experiment.teacher_distance(), "precision": None, "recall": None}
    rows: list[dict[str, Any]] = [{"row": "the teacher", "steps": "", **summarize_seeds([teacher])}]
    for name, changes in variants.items():
        settings = experiment.variant(changes)
        seeds = config.seeds if settings.matching.match else 1  # regression draws nothing: all seeds are the same run
        students = [experiment.student_metrics(settings, name, seed) for seed in range(seeds)]
        rows.append({"row": name.replace("-", " "), "steps": settings.steps, **summarize_seeds(students)})
    full = asdict(experiment.full)
    table = {"table": config.experiment, "seeds": config.seeds, "settings": full, "rows": rows}
    plot = config.out / f"{config.experiment}.png"
    plot_ablation(plot, rows)
    write_json(plot.with_suffix(".json"), table)
    print_rows(rows, plot)
    return table

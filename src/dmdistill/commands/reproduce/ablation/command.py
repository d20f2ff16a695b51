"""`dmdistill reproduce ablation | weighting | family`: the paper's tables 2 and 3, and all methods, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.pictures import draw_comparison
from dmdistill.commands.options import change
from dmdistill.commands.presets import from_preset
from dmdistill.commands.reproduce.ablation.experiment import Experiment, prepare_experiment
from dmdistill.commands.reproduce.ablation.plot import plot_ablation
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.commands.reproduce.tables import print_rows, summarize_seeds
from dmdistill.io.atomic import write_json

__all__ = ["ABLATION", "FAMILY", "WEIGHTING", "ablation", "family", "weighting"]

Variants = Mapping[str, Mapping[str, Any]]
"""Name of a row -> the settings in which it differs from the full objective."""

ABLATION: Variants = {  # table 2 of the paper, and DMD2's answer to its last row
    "full": {},
    "no-matching": {"match": False},
    "no-regression": {"lambda_reg": 0.0},
    "no-regression-5-to-1": {"lambda_reg": 0.0, "fake_steps": 5},
}
WEIGHTING: Variants = {"eq8": {}, "sigma": {"weight": "sigma"}, "sigma3": {"weight": "sigma3"}}  # table 3
FAMILY = {
    "dmd": ("fashion-dmd", False),
    "dmd2-without-gan": ("fashion-dmd2", False),
    "dmd2": ("fashion-dmd2", True),
    "dmd2-2-steps": ("fashion-dmd2-2step", True),
    "dmd2-4-steps": ("fashion-dmd2-4step", True),
    "f-distill": ("fashion-f-distill", True),
    "sid": ("fashion-sid", False),
    "sida": ("fashion-sida", True),
    "decoupled-dmd": ("fashion-decoupled-dmd", False),
}
"""Rows of the comparison of all methods: name -> preset, and whether it learns from real images."""
REPEATED = ("dmd", "dmd2-without-gan")  # rows of FAMILY that have all seeds, the others have one


def ablation(config: ReproduceConfig) -> dict[str, Any]:
    """Compare the full objective with either half of it, and with DMD2's 5:1 updates instead of the regression."""
    return run_variants(config, ABLATION)


def weighting(config: ReproduceConfig) -> dict[str, Any]:
    """Compare weights of the distribution-matching gradient: Eq. 8, sigma/alpha and sigma^3/alpha."""
    return run_variants(config, WEIGHTING)


def run_variants(config: ReproduceConfig, variants: Variants) -> dict[str, Any]:
    """Distill variants of the preset fashion-ablation and measure them."""
    experiment = prepare_experiment(config, "fashion-ablation")
    rows = {name: experiment.at_equal_compute(change(experiment.full, **changes)) for name, changes in variants.items()}
    # regression draws nothing: all seeds are the same run
    seeds = {name: config.seeds if settings.matching.match else 1 for name, settings in rows.items()}
    return run_rows(experiment, config, rows, seeds)


def family(config: ReproduceConfig) -> dict[str, Any]:
    """Compare the methods, each by its own preset, and draw their images of the same noise.

    All have the compute of DMD, the making of whose pairs counts.
    """
    experiment = prepare_experiment(config, "fashion-dmd")
    rows = {"dmd": experiment.full}
    for name, (preset, adversarial) in FAMILY.items():
        if name not in rows:
            data = config.data if adversarial else None
            settings = from_preset(DistillConfig, preset, data=data, start=config.start, compute=config.compute)
            rows[name] = experiment.at_equal_compute(settings)
    table = run_rows(experiment, config, rows, {name: config.seeds if name in REPEATED else 1 for name in FAMILY})
    students = {name.replace("-", " "): experiment.load_student(name, seed=0) for name in FAMILY}
    draw_comparison(config.out / "family-images.png", {"teacher": experiment.teacher, **students}, rows=1)
    return table


def run_rows(
    experiment: Experiment, config: ReproduceConfig, rows: Mapping[str, DistillConfig], seeds: Mapping[str, int]
) -> dict[str, Any]:
    """Distill the missing students, measure all, write the table and its plot, print and return the table."""
    teacher = experiment.teacher_metrics()
    printed: list[dict[str, Any]] = [{"row": "the teacher", "steps": "", **summarize_seeds([teacher])}]
    for name, settings in rows.items():
        students = [experiment.student_metrics(settings, name, seed) for seed in range(seeds[name])]
        printed.append({"row": name.replace("-", " "), "steps": settings.steps, **summarize_seeds(students)})
    full = asdict(experiment.full)
    table = {"table": config.experiment, "seeds": config.seeds, "settings": full, "rows": printed}
    plot = config.out / f"{config.experiment}.png"
    plot_ablation(plot, printed)
    write_json(plot.with_suffix(".json"), table)
    print_rows(printed, plot)
    return table

"""`dmdistill reproduce`: the paper's figures and tables, at a size for two CPU cores."""

from __future__ import annotations

import importlib
from typing import Any

from dmdistill.commands.options import require_at_least
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.io.atomic import check_writable

__all__ = ["EXPERIMENTS", "reproduce"]

EXPERIMENTS = {"fig3": "fig3", "fig4": "fig4", "ablation": "ablation", "weighting": "ablation"}
"""Name of an experiment -> the subfolder whose command.py has the function of that name: configuration -> table."""

UNUSED_SETTINGS = {"fig3": ("guidance", "start"), "fig4": ("guidance", "start", "steps")}


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Run one experiment, write its plot and table into `config.out`, and return the table.

    ValueError for a setting out of range or without use, OSError where `config.out` cannot be written; both before any
    computation.
    """
    check_settings(config)
    check_writable(config.out / f"{config.experiment}.json")
    config.out.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"dmdistill.commands.reproduce.{EXPERIMENTS[config.experiment]}.command")
    return getattr(module, config.experiment)(config)


def check_settings(config: ReproduceConfig) -> None:
    """Raise ValueError for a setting out of range, and for one that the experiment would ignore."""
    require_at_least(config, 1, "seeds")
    unused = {name: getattr(config, name) for name in UNUSED_SETTINGS.get(config.experiment, ())}
    unused = {name: value for name, value in unused.items() if value is not None}
    if config.experiment in UNUSED_SETTINGS and config.compute.precision == "bf16":  # fig3 is fp32, fig4 fp64
        unused["precision"] = "bf16"
    if config.experiment == "fig4" and config.compute.device not in ("auto", "cpu"):
        unused["device"] = config.compute.device
    if unused:
        flags = " ".join(f"--{name} {value}" for name, value in unused.items())
        raise ValueError(f"{config.experiment} does not use {flags}: omit it")
    if config.steps is not None:
        require_at_least(config, 1, "steps")

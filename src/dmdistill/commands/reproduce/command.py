"""`dmdistill reproduce`: the paper's figures and tables, at a size for two CPU cores."""

from __future__ import annotations

import importlib
from typing import Any

from dmdistill.commands.options import check
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.io.atomic import check_writable

__all__ = ["EXPERIMENTS", "reproduce"]

EXPERIMENTS = {"fig3": "fig3", "fig4": "fig4", "ablation": "ablation", "weighting": "ablation", "family": "ablation"}
"""Name of an experiment -> the subfolder whose command.py has the function of that name: configuration -> table."""


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Run one experiment, write its plot and table into `config.out`, and return the table.

    ValueError for a setting out of range or without use, OSError where `config.out` cannot be written; both before any
    computation.
    """
    check(config)
    check_writable(config.out / f"{config.experiment}.json")
    config.out.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"dmdistill.commands.reproduce.{EXPERIMENTS[config.experiment]}.command")
    return getattr(module, config.experiment)(config)

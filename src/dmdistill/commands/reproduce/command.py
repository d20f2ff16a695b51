"""`dmdistill reproduce`: the paper's figures and tables, at a size that two cores can do."""

from __future__ import annotations

import importlib
from typing import Any

from dmdistill.commands.presets import check_at_least
from dmdistill.commands.reproduce.config import ReproduceConfig
from dmdistill.io.atomic import check_writable

__all__ = ["EXPERIMENTS", "reproduce"]

EXPERIMENTS = {"fig3": "fig3.command", "fig4": "fig4.command", "ablation": "ablation", "weighting": "ablation"}
"""What can be reproduced -> the module in this folder with the function of that name: configuration -> table."""


UNUSED = {"fig3": ("guidance", "start"), "fig4": ("guidance", "start", "steps")}
"""Settings that an experiment has no use for: given all the same, they are refused."""


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Run one experiment, which writes its picture and table below config.out, and return its table.

    ValueError where a number cannot be, OSError where nothing can be written, both before anything is computed.
    """
    check(config)
    check_writable(config.out / f"{config.what}.json")
    config.out.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"dmdistill.commands.reproduce.{EXPERIMENTS[config.what]}")
    return getattr(module, config.what)(config)


def check(config: ReproduceConfig) -> None:
    """ValueError for a number that cannot be, and for what the experiment asked for would pass over in silence."""
    check_at_least(config, 1, "seeds")
    given = {name: value for name in UNUSED.get(config.what, ()) if (value := getattr(config, name)) is not None}
    if config.what in UNUSED and config.compute.precision == "bf16":  # fig3 is of fp32, fig4 of fp64
        given["precision"] = "bf16"
    if config.what == "fig4" and config.compute.device not in ("auto", "cpu"):
        given["device"] = config.compute.device
    if given:
        flags = " ".join(f"--{name} {value}" for name, value in given.items())
        raise ValueError(f"{config.what} has no use for {flags}: leave it out")
    if config.steps is not None:
        check_at_least(config, 1, "steps")

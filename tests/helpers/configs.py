"""Configurations for tests: options by their names, whichever group they are in."""

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change
from dmdistill.commands.presets import from_preset


def configure(kind, /, **values):
    """A configuration with the settings of short runs, and these."""
    if issubclass(kind, DistillConfig):
        return change(from_preset(kind, "_small"), preset="", **{"steps": 1000, "batch": 64, **values})
    return change(kind(), **values)

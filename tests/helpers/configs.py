"""Configurations for tests: options by their names, whichever group they are in."""

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions, change
from dmdistill.commands.presets import from_preset

CPU = ComputeOptions(device="cpu", precision="fp32", threads=1)


def configure(kind, /, **values):
    """A configuration with the settings of short runs, and these."""
    if issubclass(kind, DistillConfig):
        return change(from_preset(kind, "_small"), preset="", **{"steps": 1000, "batch": 64, **values})
    return change(kind(), **values)


def small_distillation(**values):
    """The configuration of a distillation of six steps, which takes a second, with these options."""
    small = {
        "pair_count": 12,
        "steps": 6,
        "batch": 5,
        "batch_reg": 4,
        "warmup": 2,
        "ema_halflives": (1.0, 3.0),
        "log_every": 1,
        "sample_every": 3,
        "evaluate_every": 3,
        "report_images": 0,
        "save_every": 4,
        "solver_steps": 3,
        "compute": CPU,
    }
    return configure(DistillConfig, **small | values)

"""`dmdistill demo`: the shortest way to a one-step student, without data or download."""

from __future__ import annotations

from dmdistill.commands.demo.config import DemoConfig
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change
from dmdistill.commands.presets import from_preset, from_run
from dmdistill.models.model import Student

__all__ = ["demo"]


def demo(config: DemoConfig) -> Student | None:
    """Distill the bundled teacher by its preset, or go on with a run that was stopped; return the student.

    It is `dmdistill distill --preset fashion --out OUT`, and `dmdistill distill --resume OUT` where OUT has begun.
    """
    if (config.out / "config.toml").is_file():
        return distill(change(from_run(DistillConfig, config.out), compute=config.compute))
    return distill(from_preset(DistillConfig, "fashion", out=config.out, compute=config.compute))

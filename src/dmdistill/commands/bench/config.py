"""Configuration of `dmdistill bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions, SolverOptions

__all__ = ["BenchConfig"]


@dataclass(frozen=True)
class BenchConfig:
    """Measure speed: latency at batch 1, throughput at the best batch, a student's beside its teacher's."""

    model: Positional[str]
    """A student, timed beside its teacher, or a teacher, timed alone: a name, or the folder of a model or run."""
    teacher: str | None = None
    """The student's teacher, where its config.json names none that is here."""
    repeats: int = 10
    """Rounds; in each everything is timed in turn."""
    most: int = 1024
    """Largest batch to try, of 1, 2, 4 ..."""
    compile: bool = False
    """Time the networks compiled by torch.compile as well."""
    json: Path | None = None
    """File for the figures."""
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    """The teacher's ODE solver; that of the student's distillation where none is given."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

"""Configuration of `dmdistill bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from dmdistill.commands.options import ComputeOptions, SolverOptions, require

__all__ = ["BenchConfig"]


@dataclass(frozen=True)
class BenchConfig:
    """Measure latency at batch 1, throughput at the best batch size, and memory, of a student and its teacher."""

    model: Positional[str]
    """A student, which is compared with its teacher, or a teacher: a name, or the folder of a model or run."""
    teacher: str | None = None
    """Teacher to compare the student with. Default: the one that its config.json names."""
    repeats: int = 10
    """Rounds of measurement; each times every model in turn."""
    max_batch: int = 1024
    """Largest batch size to try, of 1, 2, 4 ..."""
    compile: bool = False
    """Also measure the networks compiled by torch.compile."""
    json: Path | None = None
    """JSON file for the results."""
    ode: Annotated[SolverOptions, OmitArgPrefixes] = field(default_factory=SolverOptions)
    """The teacher's ODE solver. Default: the one that made the student's training pairs."""
    compute: Annotated[ComputeOptions, OmitArgPrefixes] = field(default_factory=ComputeOptions)
    """Where and how to compute."""

    def check(self) -> None:
        """Raise a ValueError for a number out of range."""
        require(self, "from 1 to 1000000000", lambda number: 1 <= number <= 10**9, "repeats", "max_batch")

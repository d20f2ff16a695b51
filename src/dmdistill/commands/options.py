"""One configuration per command: every field is a flag, and the words below it its help. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ComputeOptions",
    "SolverOptions",
]


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how to compute."""

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes cuda where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What networks compute in; auto takes bf16 where the hardware is faster in it. Weights and losses stay fp32."""
    threads: int = 0
    """CPU threads; 0 for all. With 1 the same seed gives the same student, bit for bit."""


@dataclass(frozen=True)
class SolverOptions:
    """The teacher's ODE solver."""

    solver: Literal["heun", "ddim", "pndm"] | None = None
    """heun: 2 steps - 1 evaluations per image; ddim: steps; pndm: steps + 1. The teacher's own where none is given."""
    solver_steps: int | None = None
    """Its steps; the teacher's own where none are given."""
    guidance: float | None = None
    """Scale of classifier-free guidance, in the pairs and in mu_real; 1 is none, and usual."""

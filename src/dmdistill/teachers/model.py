"""Teachers and students: a network with all that is needed to make images with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser, Guided
from dmdistill.core.generator import Generator
from dmdistill.core.solvers import SOLVERS, evaluations
from dmdistill.data.conditions import Labels, LabelSpace

__all__ = ["Model", "Student", "Teacher"]


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """What teachers and students share.

    Attributes:
        denoiser: the network as posterior mean; a student's is asked at the last time only.
        shape: C H W of an image.
        labels: the classes it is conditioned on; None for an unconditional model.
        licence: of the weights.
        judge: name of the classifier whose features measure its images; None where there is none.
        config: what its config.json says, from which `load_model` builds it.
    """

    name: str
    denoiser: Denoiser
    shape: tuple[int, int, int]
    labels: LabelSpace | None = None
    licence: str = "unknown"
    judge: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations per image."""

    @abstractmethod
    def images(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Images (B C H W, in about [-1, 1]) from z ~ N(0, I) of that shape; the same z gives the same image."""

    @property
    def network(self) -> nn.Module:
        """The module whose weights are stored."""
        return self.denoiser.net

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters(), torch.zeros(())).device

    def to(self, device: torch.device, precision: torch.dtype | None = None) -> Model:
        """Move to a device, where the network will compute in `precision`; channels_last, which is faster in bf16."""
        self.denoiser.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.denoiser.precision = precision
        return self

    def here(self, z: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        """Noise and conditions on the model's device."""
        return z.to(self.device), cond.to(self.device) if cond is not None else None

    def noise(self, n: int, *, rng: torch.Generator) -> tuple[Tensor, Labels | None]:
        """n draws of z and of uniform labels, on rng's device."""
        z = torch.randn(n, *self.shape, generator=rng, device=rng.device)
        return z, self.labels.draw(n, rng=rng) if self.labels else None


@dataclass(frozen=True, kw_only=True)
class Teacher(Model):
    """A pretrained denoiser and the deterministic solver that samples it.

    Attributes:
        solver, steps: heun, ddim or pndm, and its number of steps.
        guidance: scale of classifier-free guidance; 1 is none.
    """

    solver: str = "heun"
    steps: int = 18
    guidance: float = 1.0

    @property
    def evaluations(self) -> int:
        return evaluations(self.solver, self.steps) * (1 if self.guidance == 1 else 2)

    @property
    def guided(self) -> Denoiser:
        """The denoiser with guidance: mu_real."""
        return Guided(self.denoiser, self.guidance) if self.guidance != 1 else self.denoiser

    def images(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        return SOLVERS[self.solver](self.guided, *self.here(z, cond), steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Student(Model):
    """A one-step generator."""

    @property
    def evaluations(self) -> int:
        return 1

    @torch.no_grad()
    def images(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        return Generator(self.denoiser)(*self.here(z, cond))

"""Teachers and students: a network with all that is needed to make images with it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser, GuidedDenoiser
from dmdistill.core.generators import Generator
from dmdistill.core.solvers import SOLVERS, evaluations
from dmdistill.data.conditions import Conditions, TextEncoder
from dmdistill.models.autoencoder import Autoencoder

__all__ = ["Model", "Student", "Teacher", "fingerprint"]

MULTIPLYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # and no subclass, which may have other uses for a weight


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """What teachers and students share.

    Attributes:
        denoiser: the network as posterior mean; a student's is asked at the last time only.
        shape: C H W of what the network makes: of an image, or of its latents where there is a codec.
        conditions: the classes or prompts it can be told; None for an unconditional model.
        codec: makes images of latents; None for a model of pixels.
        text: encodes prompts, from which its conditions are made; None for a model that is told no text.
        licence: of the weights.
        judge: name of the classifier whose features measure its images; None where there is none.
        config: what its config.json says, from which `load_model` builds it.
    """

    name: str
    denoiser: Denoiser
    shape: tuple[int, int, int]
    conditions: Conditions | None = None
    autoencoder: Autoencoder | None = None
    text: TextEncoder | None = None
    licence: str = "unknown"
    feature_extractor: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations per image."""

    @abstractmethod
    def generate(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """x (B *shape) from z ~ N(0, I) of that shape; the same z gives the same x."""

    @torch.no_grad()
    def images(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Images (B C H W, in about [-1, 1]) from z ~ N(0, I), B *shape."""
        return self.decode(self.generate(z, cond))

    def decode(self, x: Tensor) -> Tensor:
        """Images of what `generate` makes, with their graph."""
        return self.autoencoder.decode(x) if self.autoencoder is not None else x

    @property
    def network(self) -> nn.Module:
        """The module whose weights are stored."""
        return self.denoiser.net

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters(), torch.zeros(())).device

    def to(
        self, device: torch.device, precision: torch.dtype | None = None, *, network_device: torch.device | None = None
    ) -> Self:
        """Move to a device, where the network will compute in `precision`; channels_last, which is faster in bf16.

        network_device: where the network goes for now, if not to the device, as before it is sharded.
        """
        self.denoiser.to(network_device or device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.denoiser.precision = precision
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        return self

    def cast_weights(self) -> Self:
        """Keep the weights that are multiplied as they are multiplied, in `precision`, and not cast them in each pass.

        The images stay the same, bit for bit. For a model that will draw and no more: it can no longer be trained, and
        saving it would store rounded weights.
        """
        if (precision := self.denoiser.precision) is not None:
            for module in self.network.modules():
                own = dict(module.named_parameters(recurse=False)) if type(module) in MULTIPLYING else {}
                for name, parameter in own.items():
                    setattr(module, name, nn.Parameter(parameter.detach().to(precision), parameter.requires_grad))
        return self

    def move_inputs(self, z: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        """Noise and conditions on the model's device."""
        device = self.device
        return z.to(device), cond.to(device) if cond is not None else None

    def sample_inputs(self, n: int, *, rng: torch.Generator) -> tuple[Tensor, Condition | None]:
        """n draws of z and of conditions, each as likely as any other, on rng's device."""
        z, index = self.sample_noise(n, rng=rng)
        return z, self.condition(index)

    def sample_noise(self, n: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The same, with the conditions by their numbers."""
        z = torch.randn(n, *self.shape, generator=rng, device=rng.device)
        if self.conditions is None:
            return z, None
        return z, torch.randint(len(self.conditions), (n,), generator=rng, device=rng.device)

    def condition(self, index: Tensor | None) -> Condition | None:
        """The conditions of these numbers, integers (B,), on the model's device; None of none."""
        if self.conditions is None or index is None:
            return None
        return self.conditions.select(index).to(self.device)


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
    def guided_denoiser(self) -> Denoiser:
        """The denoiser with guidance: mu_real."""
        return GuidedDenoiser(self.denoiser, self.guidance) if self.guidance != 1 else self.denoiser

    def generate(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        return SOLVERS[self.solver](self.guided_denoiser, *self.move_inputs(z, cond), steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Student(Model):
    """A one-step generator."""

    @property
    def evaluations(self) -> int:
        return 1

    @torch.no_grad()
    def generate(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        return Generator(self.denoiser)(*self.move_inputs(z, cond))


def fingerprint(teacher: Model) -> str:
    """Its name and eight hexadecimal digits of its weights' hash."""
    sha = hashlib.sha256()
    for _, tensor in sorted(teacher.network.state_dict().items()):
        sha.update(tensor.contiguous().cpu().numpy().tobytes())
    return f"{teacher.name} {sha.hexdigest()[:8]}"

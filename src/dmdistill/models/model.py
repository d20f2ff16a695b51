"""Teachers and students: a denoiser with all that is needed to sample images from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Self

import torch
from torch import Tensor, nn

from dmdistill.core.denoisers import Condition, Denoiser, GuidedDenoiser
from dmdistill.core.generators import Generator, Transition
from dmdistill.core.solvers import SOLVERS, evaluations
from dmdistill.data.conditions import Conditions, TextEncoder
from dmdistill.data.prompt_embeddings import encode_texts
from dmdistill.distributed.sharding import is_sharded_tensor
from dmdistill.models.autoencoder import Autoencoder
from dmdistill.models.clipping import Clipping, clip
from dmdistill.models.precision import fall_back_to_fp32
from dmdistill.models.requests import read_request
from dmdistill.networks.casting import cast_matmul_weights
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper
from dmdistill.networks.edm_unet import UNet

__all__ = ["Model", "Student", "Teacher"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Model(ABC):
    """Base class of `Teacher` and `Student`: a denoiser and all that is needed to sample images from it.

    Attributes:
        name: what tables and model cards call it.
        denoiser: the network as posterior mean E[x | x_t]; a student's is called at the times of its steps only.
        shape: (C, H, W) of a sample: of an image, or of its latents if there is an autoencoder.
        conditions: the classes or prompts that it can be conditioned on; None for an unconditional model.
        autoencoder: decodes latents to images; None for a model of pixels.
        text: encodes the prompts that conditions are made of; None for a model without text.
        licence: of the weights.
        feature_extractor: name of the classifier whose features measure its images; None for no such classifier.
        config: the content of its config.json, from which `load_model` builds it.
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

    def __repr__(self) -> str:
        """Return one line; the network is at `network`."""
        size = f"{'images' if self.autoencoder is None else 'latents'} {' x '.join(map(str, self.shape))}"
        conditions = str(self.conditions or "unconditional").partition(":")[0]
        parameters = f"{self.num_parameters / 1e6:.2f} M parameters"
        return (
            f"{type(self).__name__}({self.name!r}, {size}, {conditions}, {parameters}, evaluations={self.evaluations})"
        )

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations per image."""

    @abstractmethod
    def generate(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Sample x (B *shape), images or latents, from noise z ~ N(0, I) of that shape. Deterministic in z."""

    def __call__(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        labels: int | str | Sequence[int | str] | None = None,
        count: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Generate images from a seed, those of `dmdistill sample`: model(labels=[3], count=8), model("a red square").

        Args:
            prompts: of a text-to-image model, taken in turn. They are encoded once and cached on disk.
            labels: numbers of classes, from 0, or their names, taken in turn; without them every class in turn.
            count: images; by default one for each prompt or label that is given, else one.
            seed: of the noise.

        Returns:
            Floats on the CPU, count C H W in about [-1, 1], C 1 or 3; `save_grid` writes them to a file.

        Raises:
            ValueError: prompts or labels are missing or unknown to the model, or the count is below 1.
        """
        inputs = self.seeded_inputs(prompts, labels=labels, count=count, seed=seed)
        return torch.cat([self.images(z, cond).cpu() for z, cond in inputs])

    def seeded_inputs(
        self, prompts: Any = None, *, labels: Any = None, count: int | None = None, seed: int = 0
    ) -> Iterator[tuple[Tensor, Condition | None]]:
        """Yield noise, B *shape, and conditions of the images that a call with these arguments generates."""
        request = read_request(self.name, self.conditions, self.text, prompts=prompts, labels=labels, count=count)
        model = self
        if request.prompts is not None and self.text is not None:
            model = replace(self, conditions=encode_texts(request.prompts, self.text, device=self.device))
        z, _ = model.sample_noise(request.count, rng=torch.Generator(self.device).manual_seed(seed))
        index = request.index(model.conditions)
        batch = 64 if self.autoencoder is None else 4
        parts = zip(z.split(batch), index.split(batch) if index is not None else repeat(None), strict=False)
        yield from ((noise, model.condition(rows)) for noise, rows in parts)

    @torch.no_grad()
    def images(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Sample images (B C H W, in about [-1, 1]) from noise z ~ N(0, I), B *shape."""
        return self.decode(self.generate(z, cond))

    def decode(self, x: Tensor) -> Tensor:
        """Decode samples (B *shape) to images, differentiably; samples of a pixel model are its images."""
        return self.autoencoder.decode(x) if self.autoencoder is not None else x

    @property
    def network(self) -> nn.Module:
        """The module whose weights are stored."""
        return self.denoiser.net

    @property
    def num_parameters(self) -> int:
        """The number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """The device that the network computes on: that of its parameters, unless they are offloaded shards."""
        parameter: Any = next(self.network.parameters(), torch.zeros(()))
        return torch.device(parameter.device_mesh.device_type) if is_sharded_tensor(parameter) else parameter.device

    def to(
        self,
        device: torch.device,
        precision: torch.dtype | None = None,
        *,
        network_device: torch.device | None = None,
    ) -> Self:
        """Move to a device, in place, in the memory format channels_last, which is faster in bf16.

        Args:
            device: of the autoencoder and the network.
            precision: dtype of the network's forward pass, by autocast; None for the weights' own.
            network_device: where the network goes instead, such as the CPU before it is sharded.
        """
        if self.device.type != "meta":  # weights that stay in their files until they are sharded
            self.denoiser.to(network_device or device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.denoiser.precision = precision
        if precision is not None and not isinstance(self.network, UNet | DiffusersWrapper):
            fall_back_to_fp32(self.name, self.denoiser, lambda: self.evaluate_on_noise(1))
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        return self

    @torch.no_grad()
    def evaluate_on_noise(self, n: int) -> Tensor:
        """Return images (n *shape) of one evaluation, always of the same noise; torch's random state stays."""
        with torch.random.fork_rng(devices=[]):
            z, cond = self.sample_inputs(n, rng=torch.Generator().manual_seed(0))
            return Generator(self.denoiser)(*self.move_inputs(z, cond))

    def cast_weights(self) -> Self:
        """Cast the weights of linear layers and convolutions to `precision`, so that no pass has to.

        Images stay the same, bit for bit. For inference only: the model can no longer be trained, and saving it would
        store rounded weights. Networks that are neither ours nor of diffusers stay as they are, as
        parts of them may compute in fp32 on purpose.
        """
        precision = self.denoiser.precision
        if precision is not None and isinstance(self.network, UNet | DiffusersWrapper):
            cast_matmul_weights(self.network, precision)
        return self

    def move_inputs(self, z: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        """Move noise and conditions to the model's device."""
        device = self.device
        return z.to(device), cond.to(device) if cond is not None else None

    def sample_inputs(self, n: int, *, rng: torch.Generator) -> tuple[Tensor, Condition | None]:
        """Sample the inputs of n images: noise z (n *shape) and uniformly distributed conditions, on rng's device."""
        z, index = self.sample_noise(n, rng=rng)
        return z, self.condition(index)

    def sample_noise(self, n: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Sample as `sample_inputs` does, but return the index (n,) of each condition, or None without conditions."""
        z = torch.randn(n, *self.shape, generator=rng, device=rng.device)
        if self.conditions is None:
            return z, None
        return z, torch.randint(len(self.conditions), (n,), generator=rng, device=rng.device)

    def condition(self, index: Tensor | None) -> Condition | None:
        """Select conditions by their index, integers (B,), on the model's device; None for None."""
        if self.conditions is None or index is None:
            return None
        return self.conditions.select(index).to(self.device)


@dataclass(frozen=True, kw_only=True, repr=False)
class Teacher(Model):
    """A pretrained diffusion model and the deterministic solver that samples it.

    Attributes:
        solver: "heun", "dpmpp", "ddim" or "pndm".
        steps: of the solver, at least 1; on a VP schedule at most its number of timesteps.
        guidance: the scale of classifier-free guidance, from 0; 1 is without.
        clipping: of predicted images in sampling, as the teacher's scheduler clips them; None for none. It is no part
            of the distillation gradient.
    """

    solver: str = "heun"
    steps: int = 18
    guidance: float = 1.0
    clipping: Clipping | None = None

    @property
    def evaluations(self) -> int:
        """Network evaluations per image; guidance takes two a solver evaluation."""
        return evaluations(self.solver, self.steps) * (1 if self.guidance == 1 else 2)

    @property
    def guided_denoiser(self) -> Denoiser:
        """The denoiser with classifier-free guidance: mu_real. ValueError for guidance without a null class."""
        if self.guidance == 1:
            return self.denoiser
        network, conditions = self.network, self.conditions
        if conditions and isinstance(network, DiffusersWrapper) and not network.has_null_class(len(conditions)):
            raise ValueError(f"{self.name} has guidance {self.guidance:g} and no null class: it allows guidance 1 only")
        return GuidedDenoiser(self.denoiser, self.guidance)

    def generate(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Sample x (B *shape) from noise z ~ N(0, I) by the solver."""
        denoiser = clip(self.guided_denoiser, self.clipping)
        return SOLVERS[self.solver](denoiser, *self.move_inputs(z, cond), steps=self.steps)


@dataclass(frozen=True, kw_only=True, repr=False)
class Student(Model):
    """A generator of one or few steps: one network evaluation per image and step.

    Attributes:
        timesteps: the times of its steps, falling; empty for one step from the schedule's last time.
        transition: between its steps, "sde" or "ode".
    """

    timesteps: tuple[float, ...] = ()
    transition: Transition = "sde"

    @classmethod
    def from_teacher(cls, teacher: Teacher, denoiser: Denoiser, config: dict[str, Any]) -> Self:
        """Build the student of a teacher: all but the denoiser, the name and the config.json is the teacher's.

        Args:
            teacher: the teacher.
            denoiser: the student's.
            config: of the student, with its name.
        """
        return cls(
            name=config["name"],
            denoiser=denoiser,
            shape=teacher.shape,
            conditions=teacher.conditions,
            autoencoder=teacher.autoencoder,
            text=teacher.text,
            licence=teacher.licence,
            feature_extractor=teacher.feature_extractor,
            timesteps=tuple(config.get("timesteps", ())),
            transition=config.get("transition", "sde"),
            config=config,
        )

    @property
    def evaluations(self) -> int:
        """Network evaluations per image: one a step."""
        return max(len(self.timesteps), 1)

    @property
    def generator(self) -> Generator:
        """The generator of its denoiser."""
        return Generator(self.denoiser, self.timesteps, self.transition)

    @torch.no_grad()
    def generate(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        """Generate x (B *shape) from noise z ~ N(0, I); the noise of later steps follows from z."""
        return self.generator.sample(*self.move_inputs(z, cond))

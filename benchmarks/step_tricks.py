"""Our training step as `step.py` measures it, and its optimisations: each is a context that does without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dmdistill.commands.distill.setup import Job
from dmdistill.core.denoisers import Condition, Denoiser, GuidedDenoiser
from dmdistill.core.samples import Batch
from dmdistill.models.model import Teacher
from dmdistill.networks.activation_checkpointing import CHECKPOINTING
from dmdistill.networks.residual_block import UNetBlock

__all__ = ["SAVES_MEMORY", "TRICKS", "Ours", "applicable_tricks"]


class Ours:
    """Training step of a distillation, as it is after the first checkpoint."""

    def __init__(self, job: Job) -> None:
        self.job, self.rng = job, job.run.rng
        self.check_finite(False)

    def check_finite(self, check: bool) -> None:
        self.job.dmd.careful = self.job.update_generator.check_finite = self.job.update_fake.check_finite = check

    def step(self, batch: Batch) -> dict[str, Tensor]:
        return self.job.dmd.step(batch, self.job.update_generator, self.job.update_fake)

    @property
    def teacher(self) -> Teacher:
        return self.job.teacher

    @property
    def fake(self) -> Denoiser:
        return self.job.fake

    @property
    def networks(self) -> list[Denoiser]:
        return [self.job.teacher.denoiser, self.job.generator.denoiser, self.job.fake]


@contextmanager
def without_autocast(ours: Ours) -> Iterator[None]:
    precision = ours.job.run.precision
    ours.job.teacher.network.float()
    for network in ours.networks:
        network.precision = None
    yield
    for network in ours.networks:
        network.precision = precision
    ours.job.teacher.cast_weights()


@contextmanager
def without_cast_weights(ours: Ours) -> Iterator[None]:
    ours.job.teacher.network.float()
    yield
    ours.job.teacher.cast_weights()


@contextmanager
def without_channels_last(ours: Ours) -> Iterator[None]:
    set_memory_format(ours, torch.contiguous_format)
    yield
    set_memory_format(ours, torch.channels_last)


def set_memory_format(ours: Ours, memory_format: torch.memory_format) -> None:
    """Set the memory format of networks, EMAs and AdamW's moments."""
    updates = (ours.job.update_generator, ours.job.update_fake)
    for network in [*ours.networks, *(average.network for update in updates for average in update.emas)]:
        network.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    for state in (state for update in updates for state in update.optimizer.state.values()):
        for name, tensor in state.items():
            if tensor.ndim == 4:
                state[name] = tensor.contiguous(memory_format=memory_format)


@contextmanager
def without_checkpointing(ours: Ours) -> Iterator[None]:
    networks = (ours.job.generator, ours.job.fake)
    for block in (block for network in networks for block in network.modules() if isinstance(block, UNetBlock)):
        del block.first, block.second  # the class's own again
    yield
    for network in networks:
        CHECKPOINTING["norms"](network)


@contextmanager
def without_joint_generation(ours: Ours) -> Iterator[None]:
    dmd = ours.job.dmd

    def generate(batch: Batch) -> tuple[Tensor, Condition | None, Tensor | None]:
        assert batch.z_ref is not None
        return dmd.generator(batch.z, batch.cond), batch.cond, dmd.generator(batch.z_ref, batch.cond_ref)

    dmd.generate = generate
    yield
    del dmd.generate


@contextmanager
def without_joint_guidance(ours: Ours) -> Iterator[None]:
    guided = ours.job.dmd.real
    assert isinstance(guided, GuidedDenoiser)

    def forward(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        null, conditional = (guided.denoiser(x_t, t, one) for one in (cond.null(), cond))
        return null + guided.scale * (conditional - null)

    guided.forward = forward
    yield
    del guided.forward


@contextmanager
def without_fused_adamw(ours: Ours) -> Iterator[None]:
    optimizers = [ours.job.update_generator.optimizer, ours.job.update_fake.optimizer]
    hooks = [one.register_step_pre_hook(lambda one, *_: setattr(one, "found_inf", None)) for one in optimizers]
    for group in (group for one in optimizers for group in one.param_groups):
        group["fused"] = False
    yield
    for hook in hooks:
        hook.remove()
    for group in (group for one in optimizers for group in one.param_groups):
        group["fused"] = True


@contextmanager
def without_foreach_average(ours: Ours) -> Iterator[None]:
    emas = ours.job.update_generator.emas

    def update(average: Any, count: int) -> None:
        for mine, theirs in zip(average.averages, average.sources, strict=True):
            mine.copy_(theirs.lerp(mine, 0.999))

    for average in emas:
        average.update = partial(update, average)
    yield
    for average in emas:
        del average.update


@contextmanager
def with_device_checks(ours: Ours) -> Iterator[None]:
    ours.check_finite(True)
    yield
    ours.check_finite(False)


TRICKS: dict[str, Callable[[Ours], AbstractContextManager[None]]] = {
    "bf16 inside the networks": without_autocast,
    "channels_last": without_channels_last,
    "the teacher's weights cast once": without_cast_weights,
    "norms and SiLU recomputed": without_checkpointing,
    "G(z) and G(z_ref) in one call": without_joint_generation,
    "guidance in one call": without_joint_guidance,
    "fused AdamW": without_fused_adamw,
    "EMA in one operation": without_foreach_average,
    "no waiting for the device": with_device_checks,
}
SAVES_MEMORY = (  # optimisations without which memory is measured
    "bf16 inside the networks",
    "the teacher's weights cast once",
    "norms and SiLU recomputed",
)


def applicable_tricks(ours: Ours) -> list[str]:
    """List the optimisations that apply: without guidance, bf16 or our own U-Net some change nothing."""
    idle = [] if isinstance(ours.job.dmd.real, GuidedDenoiser) else [without_joint_guidance]
    idle += [without_autocast, without_cast_weights] if ours.job.run.precision is None else []
    norms = ours.job.config.checkpointing == "norms"
    idle += (
        [] if norms and any(isinstance(block, UNetBlock) for block in ours.fake.modules()) else [without_checkpointing]
    )
    return [name for name, trick in TRICKS.items() if trick not in idle]

"""Our training step as `step.py` measures it, and its optimisations: each is a context that does without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.schedule import BatchNeeds
from dmdistill.commands.distill.setup import Distillation
from dmdistill.commands.plan.dry_run import DryRun
from dmdistill.core.denoisers import Condition, Denoiser, GuidedDenoiser
from dmdistill.core.samples import Batch
from dmdistill.models.model import Teacher
from dmdistill.networks.activation_checkpointing import CHECKPOINTING
from dmdistill.networks.layers import GroupNorm
from dmdistill.networks.residual_block import UNetBlock
from dmdistill.training.device import reuse_memory

__all__ = ["SAVES_MEMORY", "TRICKS", "Ours", "applicable_tricks", "default_allocator"]


@dataclass(frozen=True)
class FixedBatch:
    """Source of one batch for every step."""

    content: Batch

    def batch(self, step: int, needs: BatchNeeds) -> Batch:
        """Return the batch."""
        return self.content

    def with_sizes(self, config: DistillConfig) -> FixedBatch:
        """Return the same batch."""
        return self


class Ours:
    """Training step of a distillation, as it is after the first checkpoint."""

    def __init__(self, run: DryRun) -> None:
        self.run, self.rng, self.precision = run, run.distillation.rng, run.teacher.denoiser.precision
        self.check_finite(False)

    def check_finite(self, check: bool) -> None:
        """Wait for the device after each update, or not."""
        for optimizer in self.distillation.optimizers.values():
            optimizer.check_finite = check

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Run one iteration of Algorithm 1."""
        return replace(self.distillation, batches=FixedBatch(batch)).iterate(0)

    @property
    def distillation(self) -> Distillation:
        """Networks, optimizers and objectives."""
        return self.run.distillation

    @property
    def teacher(self) -> Teacher:
        """The teacher, with shapes only if the run has no data."""
        return self.run.teacher

    @property
    def generator(self) -> nn.Module:
        """The generator."""
        return self.distillation.generator

    @property
    def fake(self) -> Denoiser:
        """The fake score."""
        return self.distillation.fake

    @property
    def networks(self) -> list[Denoiser]:
        """Denoisers of teacher, generator and fake score."""
        return [self.teacher.denoiser, self.distillation.generator.denoiser, self.fake]


@contextmanager
def without_autocast(ours: Ours) -> Iterator[None]:
    ours.teacher.network.float()
    for network in ours.networks:
        network.precision = None
    yield
    for network in ours.networks:
        network.precision = ours.precision
    ours.teacher.cast_weights()


@contextmanager
def without_cast_weights(ours: Ours) -> Iterator[None]:
    ours.teacher.network.float()
    yield
    ours.teacher.cast_weights()


@contextmanager
def without_channels_last(ours: Ours) -> Iterator[None]:
    set_memory_format(ours, torch.contiguous_format)
    yield
    set_memory_format(ours, torch.channels_last)


def set_memory_format(ours: Ours, memory_format: torch.memory_format) -> None:
    """Set the memory format of networks, EMAs and AdamW's moments."""
    optimizers = ours.distillation.optimizers.values()
    for network in [*ours.networks, *(ema.network for optimizer in optimizers for ema in optimizer.emas)]:
        network.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    for state in (state for optimizer in optimizers for state in optimizer.optimizer.state.values()):
        for name, tensor in state.items():
            if tensor.ndim == 4:
                state[name] = tensor.contiguous(memory_format=memory_format)


@contextmanager
def with_checkpointing(kind: str, ours: Ours) -> Iterator[None]:
    set_checkpointing(ours, kind)
    yield
    set_checkpointing(ours, "auto")


def set_checkpointing(ours: Ours, kind: str) -> None:
    """Checkpoint the activations of the trained networks in another way."""
    for network in (ours.generator, ours.fake):
        for block in (block for block in network.modules() if isinstance(block, UNetBlock)):
            for name in ("first", "second", "forward"):
                vars(block).pop(name, None)  # the class's own again
        CHECKPOINTING[kind](network)


@contextmanager
def default_allocator(ours: Ours | None = None) -> Iterator[None]:
    """Have glibc's allocator as it is by itself."""
    reuse_memory(32 << 20)
    yield
    reuse_memory()


@contextmanager
def without_plain_attention(ours: Ours) -> Iterator[None]:
    with patch("dmdistill.networks.residual_block.attention", F.scaled_dot_product_attention):
        yield


@contextmanager
def without_fp32_norms(ours: Ours) -> Iterator[None]:
    with patch.object(GroupNorm, "forward", nn.GroupNorm.forward):
        yield


class HalvesGenerator(nn.Module):
    """Generator that takes the images of fresh noise and those of the pairs' noise, as many, in a call each."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, cond: Condition | None = None) -> Tensor:
        half = len(z) // 2
        rows = (slice(half), slice(half, None))
        return torch.cat([self.generator(z[one], cond[one] if cond is not None else None) for one in rows])


@contextmanager
def without_joint_generation(ours: Ours) -> Iterator[None]:
    distillation = ours.run.distillation
    networks = replace(distillation.objectives.networks, generator=HalvesGenerator(distillation.generator))
    objectives = replace(distillation.objectives, networks=networks)
    ours.run.distillation = replace(distillation, objectives=objectives)
    yield
    ours.run.distillation = distillation


@contextmanager
def without_joint_guidance(ours: Ours) -> Iterator[None]:
    guided = ours.distillation.real
    assert isinstance(guided, GuidedDenoiser)

    def forward(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        null, conditional = (guided.denoiser(x_t, t, one) for one in (cond.null(), cond))
        return null + guided.scale * (conditional - null)

    guided.forward = forward
    yield
    del guided.forward


@contextmanager
def without_fused_adamw(ours: Ours) -> Iterator[None]:
    optimizers = [one.optimizer for one in ours.distillation.optimizers.values()]
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
    emas = ours.distillation.optimizers["generator"].emas

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
    "norms and SiLU recomputed": partial(with_checkpointing, "none"),
    "norms and SiLU kept": partial(with_checkpointing, "norms"),
    "activations in blocks kept": partial(with_checkpointing, "blocks"),
    "attention by plain products": without_plain_attention,
    "norms of small groups in fp32": without_fp32_norms,
    "memory kept by the allocator": default_allocator,
    "G(z) and G(z_ref) in one call": without_joint_generation,
    "guidance in one call": without_joint_guidance,
    "fused AdamW": without_fused_adamw,
    "EMA in one operation": without_foreach_average,
    "no waiting for the device": with_device_checks,
}
OF_OUR_BLOCKS = ("norms and SiLU kept", "activations in blocks kept", "attention by plain products")
ON_CPU = (*OF_OUR_BLOCKS, "norms of small groups in fp32", "memory kept by the allocator")
SAVES_MEMORY = (  # optimisations without which memory is measured
    "bf16 inside the networks",
    "the teacher's weights cast once",
    "norms and SiLU recomputed",
    "norms and SiLU kept",
    "activations in blocks kept",
    "memory kept by the allocator",
)


def applicable_tricks(ours: Ours) -> list[str]:
    """List the optimisations that apply: without guidance, bf16 or our own U-Net some change nothing."""
    idle = [] if isinstance(ours.distillation.real, GuidedDenoiser) else ["guidance in one call"]
    idle += ["bf16 inside the networks", "the teacher's weights cast once"] if ours.precision is None else []
    idle += ["norms and SiLU recomputed"] if ours.teacher.device.type == "cpu" else ON_CPU
    if not any(isinstance(block, UNetBlock) for block in ours.fake.modules()):
        idle += ["norms and SiLU recomputed", *OF_OUR_BLOCKS]
    norms = (module for module in ours.fake.modules() if isinstance(module, GroupNorm))
    if ours.precision is None or not any(norm.num_channels < 16 * norm.num_groups for norm in norms):
        idle += ["norms of small groups in fp32"]
    return [name for name in TRICKS if name not in idle]

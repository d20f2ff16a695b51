"""Our step as `step.py` measures it, and what it is made fast and small by: each a context that does without."""

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

__all__ = ["HOLDS_LESS", "TRICKS", "Ours", "tricks_of"]


class Ours:
    """A job's own algorithm and updates, as they are from its first checkpoint on."""

    def __init__(self, job: Job) -> None:
        self.job, self.rng = job, job.run.rng
        self.wait(False)

    def wait(self, careful: bool) -> None:
        self.job.dmd.careful = self.job.update_generator.check_finite = self.job.update_fake.check_finite = careful

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
def in_fp32(ours: Ours) -> Iterator[None]:
    precision = ours.job.run.precision
    ours.job.teacher.network.float()
    for network in ours.networks:
        network.precision = None
    yield
    for network in ours.networks:
        network.precision = precision
    ours.job.teacher.cast_weights()


@contextmanager
def cast_each_time(ours: Ours) -> Iterator[None]:
    ours.job.teacher.network.float()
    yield
    ours.job.teacher.cast_weights()


@contextmanager
def contiguous(ours: Ours) -> Iterator[None]:
    lay_out(ours, torch.contiguous_format)
    yield
    lay_out(ours, torch.channels_last)


def lay_out(ours: Ours, memory_format: torch.memory_format) -> None:
    """Networks, and what their optimisers and averages hold beside them."""
    updates = (ours.job.update_generator, ours.job.update_fake)
    for network in [*ours.networks, *(average.network for update in updates for average in update.emas)]:
        network.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    for state in (state for update in updates for state in update.optimizer.state.values()):
        for name, tensor in state.items():
            if tensor.ndim == 4:
                state[name] = tensor.contiguous(memory_format=memory_format)


@contextmanager
def all_kept(ours: Ours) -> Iterator[None]:
    networks = (ours.job.generator, ours.job.fake)
    for block in (block for network in networks for block in network.modules() if isinstance(block, UNetBlock)):
        del block.first, block.second  # the class's own again
    yield
    for network in networks:
        CHECKPOINTING["norms"](network)


@contextmanager
def in_two_calls(ours: Ours) -> Iterator[None]:
    dmd = ours.job.dmd

    def generate(batch: Batch) -> tuple[Tensor, Condition | None, Tensor | None]:
        assert batch.z_ref is not None
        return dmd.generator(batch.z, batch.cond), batch.cond, dmd.generator(batch.z_ref, batch.cond_ref)

    dmd.generate = generate
    yield
    del dmd.generate


@contextmanager
def guided_by_two_calls(ours: Ours) -> Iterator[None]:
    guided = ours.job.dmd.real
    assert isinstance(guided, GuidedDenoiser)

    def forward(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        null, told = (guided.denoiser(x_t, t, one) for one in (cond.null(), cond))
        return null + guided.scale * (told - null)

    guided.forward = forward
    yield
    del guided.forward


@contextmanager
def unfused(ours: Ours) -> Iterator[None]:
    optimisers = [ours.job.update_generator.optimizer, ours.job.update_fake.optimizer]
    hooks = [one.register_step_pre_hook(lambda one, *_: setattr(one, "found_inf", None)) for one in optimisers]
    for group in (group for one in optimisers for group in one.param_groups):
        group["fused"] = False
    yield
    for hook in hooks:
        hook.remove()
    for group in (group for one in optimisers for group in one.param_groups):
        group["fused"] = True


@contextmanager
def averaged_one_by_one(ours: Ours) -> Iterator[None]:
    averages = ours.job.update_generator.emas

    def update(average: Any, count: int) -> None:
        for mine, theirs in zip(average.averages, average.sources, strict=True):
            mine.copy_(theirs.lerp(mine, 0.999))

    for average in averages:
        average.update = partial(update, average)
    yield
    for average in averages:
        del average.update


@contextmanager
def waiting(ours: Ours) -> Iterator[None]:
    ours.wait(True)
    yield
    ours.wait(False)


TRICKS: dict[str, Callable[[Ours], AbstractContextManager[None]]] = {
    "bf16 inside the networks": in_fp32,
    "channels_last": contiguous,
    "the teacher's weights cast once": cast_each_time,
    "norms and SiLU computed again": all_kept,
    "G(z) and G(z_ref) in one call": in_two_calls,
    "both answers of guidance in one call": guided_by_two_calls,
    "fused AdamW": unfused,
    "the average in one operation": averaged_one_by_one,
    "no waiting for the device": waiting,
}
HOLDS_LESS = (  # tricks that memory is measured without
    "bf16 inside the networks",
    "the teacher's weights cast once",
    "norms and SiLU computed again",
)


def tricks_of(ours: Ours) -> list[str]:
    """Those that there are: without guidance, bf16 or a U-Net of ours some change nothing."""
    idle = [] if isinstance(ours.job.dmd.real, GuidedDenoiser) else [guided_by_two_calls]
    idle += [in_fp32, cast_each_time] if ours.job.run.precision is None else []
    norms = ours.job.config.checkpointing == "norms"
    idle += [] if norms and any(isinstance(block, UNetBlock) for block in ours.fake.modules()) else [all_kept]
    return [name for name, trick in TRICKS.items() if trick not in idle]

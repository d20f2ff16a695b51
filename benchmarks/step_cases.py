"""Cases of `step.py`: networks of the published sizes, with random weights except for the bundled one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dmdistill.core.denoisers import EDMDenoiser, EpsDenoiser
from dmdistill.core.samples import Batch
from dmdistill.core.schedules import EDM, VP
from dmdistill.data.conditions import LabelSpace
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.data.shards import rows_in_memory
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Teacher
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.diffusers_wrappers import UNet2DCondition
from dmdistill.networks.song_unet import SongUNet

__all__ = ["CASES", "Case", "make_batch"]


def randomize(network: nn.Module) -> nn.Module:
    """Give every weight matrix random values: fresh networks end in zeros."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return network.eval()


def cifar10() -> Teacher:
    """EDM's DDPM++ of 55.7 M parameters."""
    network = SongUNet(img_resolution=32, in_channels=3, out_channels=3, label_dim=10, augment_dim=9)
    labels = LabelSpace(tuple(map(str, range(10))))
    return Teacher(
        name="cifar10", denoiser=EDMDenoiser(randomize(network), EDM()), shape=(3, 32, 32), conditions=labels
    )


def imagenet64() -> Teacher:
    """EDM's ADM of 296 M parameters."""
    network = DhariwalUNet(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)
    labels = LabelSpace(tuple(map(str, range(1000))))
    return Teacher(
        name="imagenet64", denoiser=EDMDenoiser(randomize(network), EDM()), shape=(3, 64, 64), conditions=labels
    )


def sd15() -> Teacher:
    """Stable Diffusion v1.5's U-Net of 860 M parameters, guided as in the paper."""
    from diffusers import UNet2DConditionModel

    network: Any = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )
    denoiser = EpsDenoiser(UNet2DCondition(randomize(network)), VP.linear_betas())
    embeds = {"prompt_embeds": torch.randn(8, 77, 768)}
    prompts = PromptSet([str(i) for i in range(8)], rows_in_memory(embeds), {"prompt_embeds": torch.randn(1, 77, 768)})
    return Teacher(name="sd15", denoiser=denoiser, shape=(4, 64, 64), conditions=prompts, guidance=8.0)


@dataclass(frozen=True)
class Case:
    """Network to measure.

    Args:
        teacher: builds it.
        batch: generated images of a step, and as many pairs.
        on_cpu: whether a CPU is fast enough and large enough for it.
    """

    teacher: Callable[[], Teacher]
    batch: int
    on_cpu: bool = True


CASES = {
    "fashion": Case(partial(load_teacher, "fashion"), 32),
    "cifar10": Case(cifar10, 8),
    "imagenet64": Case(imagenet64, 16, on_cpu=False),
    "sd15": Case(sd15, 4, on_cpu=False),
}


def make_batch(teacher: Teacher, size: int, *, fake_steps: int) -> Batch:
    """Draw the batch of a step, the same for both implementations."""
    rng = torch.Generator(teacher.device).manual_seed(1)
    z, cond = teacher.sample_inputs(size, rng=rng)
    z_ref, cond_ref = teacher.sample_inputs(size, rng=rng)
    y_ref = torch.randn(z.shape, generator=rng, device=z.device).tanh()
    fresh = teacher.sample_inputs((fake_steps - 1) * size, rng=rng) if fake_steps > 1 else (None, None)
    return Batch(z, cond, z_ref, y_ref, cond_ref, *fresh)

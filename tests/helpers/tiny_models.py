"""Tiny models of diffusers that are told no text, and students of any teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmdistill.commands.distill.student import INHERITED_KEYS
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Student
from dmdistill.networks.lora import add_lora
from helpers import tiny_pipelines as pipelines


def unet2d_network(**changes: Any) -> Any:
    """A UNet2DModel of 3 x 8 x 8 pixels: two levels, attention at the lower one and in the middle."""
    import diffusers

    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DModel(**settings | changes).eval()


def unet2d(folder: Path, scheduler: Any, **changes: Any) -> Path:
    """The folder of such a network, with scheduler/ in it."""
    unet2d_network(**changes).save_pretrained(folder)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def dit(folder: Path) -> Path:
    """DiT of 4 x 8 x 8 latents and 5 classes, as a pipeline."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=1,
        sample_size=8,
        num_embeds_ada_norm=5,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    vae, scheduler = pipelines.vae(latents=4), diffusers.DDIMScheduler()
    pipeline = diffusers.DiTPipeline(transformer=network, vae=vae, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    return folder


@torch.no_grad()
def save_student(name: str, folder: Path, *, rank: int = 0, **steps: Any) -> Student:
    """Save a student whose weights differ from its teacher's, in a folder as a distillation writes it.

    steps: its timesteps and transition; one step where there are none.
    """
    teacher = load_teacher(name)
    alpha = rank / 2  # another than the rank: the scale is to be kept
    denoiser = add_lora(teacher.denoiser, rank=rank, alpha=alpha) if rank else copy.deepcopy(teacher.denoiser)
    torch.manual_seed(1)
    for key, parameter in denoiser.named_parameters():
        if not rank or ".lora_" in key:
            parameter += (0.5 if rank else 0.1) * torch.randn_like(parameter)
    config = {
        "kind": "student",
        "name": f"{teacher.name}-student",
        **{key: teacher.config.get(key) for key in (*INHERITED_KEYS, "licence", "feature_extractor")},
        **steps,
    }
    if rank or "network" not in teacher.config:
        config |= {"teacher": name} | ({"lora": {"rank": rank, "alpha": alpha}} if rank else {})
    config["distilled"] = {"teacher": name, "steps": 7}
    student = Student.from_teacher(teacher, denoiser, config)
    save_model(folder, student, card="A student of nothing.")
    return student

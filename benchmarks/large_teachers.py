"""Teachers of the sizes in use, without weights, for `dmdistill plan`: on the meta device they take no memory.

dmdistill plan --teacher benchmarks.large_teachers:unet_860m --peak-tflops 990
"""

from __future__ import annotations

import torch

from dmdistill.core.denoisers import FlowDenoiser
from dmdistill.core.schedules import Flow
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.models.autoencoder import VAE
from dmdistill.models.model import Teacher
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper, Flux, StableDiffusion3, UNet2DCondition

__all__ = ["transformer_1b", "transformer_12b", "unet_860m"]

Shape = tuple[int, int, int]


def told(network: DiffusersWrapper, name: str, shape: Shape, **tensors: tuple[int, ...]) -> Teacher:
    """A teacher told prompts of such tensors. All on one path, which makes no difference to what it takes."""
    empty = {key: torch.zeros(1, *size) for key, size in tensors.items()}
    prompts = PromptSet(["one"], [empty], empty)
    denoiser, autoencoder = FlowDenoiser(network, Flow()), VAE(torch.nn.Linear(1, 1))  # never asked: it marks latents
    return Teacher(name=name, denoiser=denoiser, shape=shape, conditions=prompts, autoencoder=autoencoder)


def unet_860m() -> Teacher:
    """The U-Net of Stable Diffusion v1.5, images of 512 x 512."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    return told(UNet2DCondition(network), "U-Net, 860 M", (4, 64, 64), prompt_embeds=(77, 768))


def transformer_1b() -> Teacher:
    """Stable Diffusion 3's transformer with 18 layers for its 24 and heads of 1,152 in all, images of 1024 x 1024."""
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        network = SD3Transformer2DModel(
            sample_size=128, num_layers=20, num_attention_heads=20, caption_projection_dim=1280
        )
    tensors = {"prompt_embeds": (154, 4096), "pooled_prompt_embeds": (2048,)}
    return told(StableDiffusion3(network), "transformer, 1 B", (16, 128, 128), **tensors)


def transformer_12b() -> Teacher:
    """Flux's transformer, images of 1024 x 1024."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        network = FluxTransformer2DModel()
    tensors = {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)}
    return told(Flux(network), "transformer, 12 B", (16, 128, 128), **tensors)

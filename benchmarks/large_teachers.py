"""Teachers of the sizes in use, without weights, for `dmdistill plan`: on the meta device they take no memory.

dmdistill plan --teacher benchmarks.large_teachers:unet_860m --peak-tflops 990
"""

from __future__ import annotations

import torch

from dmdistill.core.denoisers import FlowDenoiser
from dmdistill.core.schedules import Flow
from dmdistill.data.prompt_embeddings import PromptSet
from dmdistill.data.shards import rows_in_memory
from dmdistill.models.autoencoder import VAE
from dmdistill.models.model import Teacher
from dmdistill.networks.diffusers_wrappers import DiffusersWrapper, Flux, StableDiffusion3, UNet2DCondition

__all__ = ["transformer_1b", "transformer_12b", "unet_860m"]

Shape = tuple[int, int, int]


def text_to_image_teacher(network: DiffusersWrapper, name: str, shape: Shape, **tensors: tuple[int, ...]) -> Teacher:
    """Build a teacher conditioned on tensors of these shapes; its noise schedule makes no difference to its cost."""
    empty = {key: torch.zeros(1, *size) for key, size in tensors.items()}
    prompts = PromptSet(["one"], rows_in_memory(empty), empty)
    denoiser = FlowDenoiser(network, Flow())
    autoencoder = VAE(torch.nn.Linear(1, 1))  # it is never called, but marks latents
    return Teacher(name=name, denoiser=denoiser, shape=shape, conditions=prompts, autoencoder=autoencoder)


def unet_860m() -> Teacher:
    """Build the U-Net of Stable Diffusion v1.5, for images of 512 x 512."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    return text_to_image_teacher(UNet2DCondition(network), "U-Net, 860 M", (4, 64, 64), prompt_embeds=(77, 768))


def transformer_1b() -> Teacher:
    """Build a transformer of 1 B parameters like Stable Diffusion 3's, for images of 1024 x 1024."""
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        network = SD3Transformer2DModel(
            sample_size=128, num_layers=20, num_attention_heads=20, caption_projection_dim=1280
        )
    tensors = {"prompt_embeds": (154, 4096), "pooled_prompt_embeds": (2048,)}
    return text_to_image_teacher(StableDiffusion3(network), "transformer, 1 B", (16, 128, 128), **tensors)


def transformer_12b() -> Teacher:
    """Build Flux's transformer, for images of 1024 x 1024."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        network = FluxTransformer2DModel()
    tensors = {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)}
    return text_to_image_teacher(Flux(network), "transformer, 12 B", (16, 128, 128), **tensors)

"""Tiny pipelines of diffusers: the real classes with random weights, saved as folders in well under a second.

Images are 16 x 16 and latents 8 x 8. Each function takes the folder to write and answers with it.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

WORDS = ("red", "blue", "square", "circle")
FAMILIES = ("stable_diffusion", "sdxl", "sd3", "flux")


def tiny(family: str, folder: Path, **options: Any) -> Path:
    """The tiny pipeline of this family, one of `FAMILIES`."""
    return globals()[f"tiny_{family}"](folder, **options)


def tiny_stable_diffusion(folder: Path, *, prediction: str = "epsilon", activation: str = "quick_gelu") -> Path:
    """Stable Diffusion 1.x with PNDM; prediction "v_prediction" and activation "gelu", OpenCLIP's, for 2.x."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction,
    )
    return saved(
        folder,
        StableDiffusionPipeline,
        vae=vae(latents=4),
        text_encoder=clip(width=12, activation=activation),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=12, use_linear_projection=activation == "gelu"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl(folder: Path, *, zeros: bool = True, **scheduling: Any) -> Path:
    """Stable Diffusion XL with its two text encoders; zeros: what `force_zeros_for_empty_prompt` says."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    options = {"beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading", **scheduling}
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, **options)
    network = unet(
        cross_attention_dim=12 + 20,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 14,  # six sizes, and the pooled prompt
    )
    return saved(
        folder,
        StableDiffusionXLPipeline,
        vae=vae(latents=4),
        text_encoder=clip(width=12),
        text_encoder_2=clip(width=20, projection=14),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        unet=network,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def tiny_sd3(folder: Path, *, t5: bool = True) -> Path:
    """Stable Diffusion 3 with three text encoders, or without the third, as it is often loaded."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=10 + 14,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return saved(
        folder,
        StableDiffusion3Pipeline,
        vae=vae(latents=4, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(width=12, projection=10),
        text_encoder_2=clip(width=20, projection=14),
        text_encoder_3=t5_encoder(width=32) if t5 else None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        tokenizer_3=t5_tokenizer() if t5 else None,
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def tiny_flux(folder: Path, *, guidance: bool = False) -> Path:
    """Flux with CLIP and T5; guidance: whether the network is told a scale, as in the variant "dev"."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * 4,  # 2 x 2 latents of 4 channels become one token
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=12,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance,
    )
    return saved(
        folder,
        FluxPipeline,
        vae=vae(latents=4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(width=12),
        text_encoder_2=t5_encoder(width=32),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance),
    )


def saved(folder: Path, kind: Any, **parts: Any) -> Path:
    kind(**parts).save_pretrained(folder)
    return folder


def unet(**options: Any) -> Any:
    """A U-Net of 4 x 8 x 8 latents: one level without text, one with."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )


def vae(*, latents: int, **options: Any) -> Any:
    """An autoencoder of 3 x 16 x 16 images, which makes half as many pixels of them."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=16,
        **options,
    )


def clip(*, width: int, projection: int | None = None, activation: str = "quick_gelu") -> Any:
    """CLIP's text encoder, of the class with a projection where one is given."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = clip_vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        hidden_act=activation,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def clip_vocabulary() -> dict[str, int]:
    """Printable characters, each in a word and at its end, and the two special tokens."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *MERGED]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


MERGES = [("r", "e"), ("re", "d</w>"), ("s", "q"), ("u", "a")]
MERGED = ["".join(pair) for pair in MERGES]


def clip_tokenizer(*, pad: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer, of 16 tokens at most, on a vocabulary of characters and four merges."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=clip_vocabulary(), merges=MERGES, pad_token=pad, model_max_length=16)


def t5_encoder(*, width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config).eval()


def t5_tokenizer() -> Any:
    """T5's tokenizer, on a vocabulary of characters and a few words."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in (*string.ascii_lowercase, *string.digits)]
    return T5TokenizerFast(vocab=[*special, *letters, *((f"▁{word}", -1.0) for word in WORDS)], extra_ids=0)

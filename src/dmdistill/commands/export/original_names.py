"""The names that Stable Diffusion's first code, and OpenCLIP, gave to the tensors that diffusers names otherwise.

Single files have these names; diffusers converts them in the other direction only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["autoencoder_tensors", "clip_tensors", "open_clip_tensors", "unet_tensors"]

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

UNET_RULES: Rules = [  # what is within a block comes first, while its name still says what it is
    (r"(resnets\.\d+)\.norm1\.", r"\1.in_layers.0."),
    (r"(resnets\.\d+)\.conv1\.", r"\1.in_layers.2."),
    (r"(resnets\.\d+)\.time_emb_proj\.", r"\1.emb_layers.1."),
    (r"(resnets\.\d+)\.norm2\.", r"\1.out_layers.0."),
    (r"(resnets\.\d+)\.conv2\.", r"\1.out_layers.3."),
    (r"(resnets\.\d+)\.conv_shortcut\.", r"\1.skip_connection."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.(\d)\.", lambda match: f"middle_block.{2 * int(match[1])}."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
]
UNET_STARTS = ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb.")
VAE_RULES: Rules = [
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.attentions\.0\.group_norm\.", ".attentions.0.norm."),
    (r"\.attentions\.0\.to_([qkv])\.", r".attentions.0.\1."),
    (r"\.attentions\.0\.to_out\.0\.", ".attentions.0.proj_out."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda match: f".mid.block_{int(match[1]) + 1}."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample."),
    (r"\.conv_norm_out\.", ".norm_out."),
]
CLIP_RULES: Rules = [
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_projection\.weight$", "text_projection"),
]


def rename(name: str, rules: Rules) -> str:
    """Return a name after all rules, regular expressions and what takes the place of their matches, in their order."""
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def unet_tensors(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a UNet2DConditionModel by their original names. ValueError for a layer without one.

    Args:
        state: by the names of diffusers.
        config: of the network, for its layers per block and the kinds of its blocks.
    """
    rules = [*UNET_RULES, *unet_block_rules(config)]
    tensors = {rename(name, rules): tensor for name, tensor in state.items()}
    if odd := [name for name in tensors if not name.startswith(UNET_STARTS)]:
        raise ValueError(f"its layer {odd[0]} has no name in Stable Diffusion's original code: only --format diffusers")
    return tensors


def unet_block_rules(config: Mapping[str, Any]) -> Rules:
    """Return the rules of the numbered blocks: one row of them, of which each level has one more than its layers."""
    layers, kinds = config["layers_per_block"], config["up_block_types"]
    if type(layers) is not int:
        raise ValueError(f"its layers_per_block {layers!r} differ by level: only --format diffusers")
    row = layers + 1

    def place(match: re.Match[str], first: int) -> str:
        return f"{first + row * int(match[1]) + int(match[3])}.{int(match[2] == 'attentions')}."

    def upsampler(match: re.Match[str]) -> str:
        level = int(match[1])
        return f"output_blocks.{row * level + layers}.{1 + ('CrossAttn' in kinds[level])}.conv."

    return [
        (r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", lambda match: f"input_blocks.{place(match, 1)}"),
        (
            r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.",
            lambda match: f"input_blocks.{row * (int(match[1]) + 1)}.0.op.",
        ),
        (r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", lambda match: f"output_blocks.{place(match, 0)}"),
        (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampler),
    ]


def autoencoder_tensors(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return the tensors of an AutoencoderKL by their original names: its attention was of 1 x 1 convolutions.

    Args:
        state: by the names of diffusers.
        levels: of resolution, which its decoder counted from the last one.
    """
    backwards = (r"(^decoder\.up)_blocks\.(\d+)\.", lambda match: f"{match[1]}_blocks.{levels - 1 - int(match[2])}.")
    tensors = {rename(name, [backwards, *VAE_RULES]): tensor for name, tensor in state.items()}
    return {
        name: tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }


def clip_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of CLIP's text encoder by the names of older versions of transformers."""
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def open_clip_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a text encoder by OpenCLIP's names, with queries, keys and values as one tensor."""
    plain = {rename(name.removeprefix("text_model."), CLIP_RULES): tensor for name, tensor in state.items()}
    tensors = {name: tensor for name, tensor in plain.items() if not re.search(r"\.[qkv]_proj\.", name)}
    for name in [name for name in plain if ".q_proj." in name]:
        parts = [plain[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
        tensors[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    if "text_projection" in tensors:
        tensors["text_projection"] = tensors["text_projection"].T
    return tensors

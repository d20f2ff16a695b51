"""Guidance of exported students: they are trained to be used without, and pipelines guide by default."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["GUIDANCE_MATTERS", "NEVER_GUIDED", "leave_unguided"]

EMBEDDING_WIDTH = 256  # as in latent consistency models
NEVER_GUIDED = "# guidance_scale can be left out: this student is never guided, whatever its value\n"
GUIDANCE_MATTERS = "# guidance_scale is needed: by default the pipeline guides, and the student was trained without\n"


def leave_unguided(unet: Any) -> None:
    """Give a UNet2DConditionModel, in place, an embedding of the guidance scale whose weights are zero.

    The pipelines of diffusers take a network with this input, `time_cond_proj_dim`, for one that is guided by itself,
    and evaluate it once at any guidance_scale; with weights of zero it ignores the input.
    """
    embedding = nn.Linear(EMBEDDING_WIDTH, unet.time_embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(embedding.weight)
    unet.time_embedding.cond_proj = embedding
    unet.register_to_config(time_cond_proj_dim=EMBEDDING_WIDTH)

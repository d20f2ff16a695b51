"""Autoencoders: between images and the latents that a model works in."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["VAE", "Autoencoder"]


class Autoencoder(Protocol):
    """Decodes latents to images. Its weights are frozen; gradients pass through it."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, as the model samples them, to images (B C H W, in about [-1, 1])."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move to a device."""
        ...


class VAE(nn.Module):
    """An autoencoder of diffusers, whose latents the model scales: latents = (code - shift) * scale.

    Args:
        model: AutoencoderKL or AutoencoderTiny.
        scale: `scaling_factor` of its config.
        shift: `shift_factor` of its config.
    """

    def __init__(self, model: nn.Module, *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.scale, self.shift = scale, shift

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B C H W) to images, in the dtype of the latents."""
        weight = next(self.model.parameters())
        code = (latents / self.scale + self.shift).to(weight.dtype)
        return self.model.decode(code, return_dict=False)[0].to(latents.dtype)  # type: ignore[operator]

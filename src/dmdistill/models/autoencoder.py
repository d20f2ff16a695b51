"""Between images and the latents that a model works in."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["VAE", "Autoencoder"]


class Autoencoder(Protocol):
    """Makes images of latents. Frozen; gradients pass through it."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B C H W, in about [-1, 1]) of latents as the model makes them."""
        ...

    def to(self, device: torch.device) -> Self: ...


class VAE(nn.Module):
    """A variational autoencoder of diffusers, AutoencoderKL or AutoencoderTiny: latents are (code - shift) * scale."""

    def __init__(self, model: nn.Module, *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.scale, self.shift = scale, shift

    def decode(self, latents: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        code = (latents / self.scale + self.shift).to(weight.dtype)
        return self.model.decode(code, return_dict=False)[0].to(latents.dtype)  # type: ignore[operator]

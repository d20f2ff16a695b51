"""Autoencoders: between images and the latents that a model works in."""

from __future__ import annotations

import hashlib
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from dmdistill.io.checksums import tensor_bytes

__all__ = ["VAE", "Autoencoder"]


class Autoencoder(Protocol):
    """Encodes images as latents and decodes them. Its weights are frozen; gradients pass through the decoder."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, as the model samples them, to images (B C H W, in about [-1, 1])."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B C H W in [-1, 1]) as latents of the kind that `decode` takes. Deterministic."""
        ...

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return C H W of the images whose latents have this shape."""
        ...

    def fingerprint(self) -> str:
        """Return hexadecimal digits that tell the latents of this autoencoder from another's."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move to a device."""
        ...


class VAE(nn.Module):
    """An autoencoder of diffusers, whose latents the model scales: latents = (code - shift) * scale.

    Args:
        model: AutoencoderKL, AutoencoderTiny or VQModel.
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

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B C H W in [-1, 1]) as latents, in the dtype of the images.

        Where the encoder gives a distribution (AutoencoderKL), its mode: encoding draws nothing.
        """
        weight = next(self.model.parameters())
        code = self.model.encode(images.to(weight.dtype), return_dict=False)[0]  # type: ignore[operator]
        code = code if isinstance(code, Tensor) else code.mode()
        return ((code - self.shift) * self.scale).to(images.dtype)

    def image_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return C H W of the images whose latents have this shape: each level but the first halves the sides."""
        config = self.model.config  # of diffusers, whose pipelines compute the factor so too
        factor = 2 ** (len(config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]
        return config.in_channels, shape[1] * factor, shape[2] * factor  # type: ignore[union-attr, return-value]

    def fingerprint(self) -> str:
        """Return eight hexadecimal digits of a hash of the weights, their dtype and the scale of the latents."""
        sha = hashlib.sha256(f"{type(self.model).__name__} {self.scale} {self.shift}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            sha.update(f"{name} {tensor.dtype}".encode())
            sha.update(tensor_bytes(tensor))
        return sha.hexdigest()[:8]

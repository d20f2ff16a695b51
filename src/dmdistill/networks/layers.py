"""Layers of EDM's networks: convolutions, norms, resampling, embeddings of the noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ConvolutionDown",
    "FourierEmbedding",
    "GroupNorm",
    "PositionalEmbedding",
    "Resample",
    "convolution",
    "group_norm",
    "is_filter",
]

Direction = Literal["up", "down"]


def convolution(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


def group_norm(channels: int, group_channels: int = 4, *, eps: float = 1e-6) -> nn.GroupNorm:
    """Return a group norm of as many groups as divide the channels, at most 32, of at least `group_channels` each."""
    most = max(1, min(32, channels // group_channels))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return GroupNorm(groups, channels, eps=eps)


class GroupNorm(nn.GroupNorm):
    """A group norm that on a CPU computes small groups in fp32, several times faster than PyTorch does in bf16."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise images (B C H W), in their dtype."""
        small = self.num_channels < 16 * self.num_groups
        if small and input.device.type == "cpu" and input.dtype == torch.bfloat16:
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)
        return super().forward(input)


def is_filter(name: str) -> bool:
    """Return whether a published checkpoint's tensor is the filter of a `Resample`, which our state dicts leave out."""
    return name.endswith(".resample_filter")


class Resample(nn.Module):
    """Halves or doubles height and width by a separable filter.

    The published checkpoints store the filter in each layer that resamples. Here it is an argument of the network, and
    not in its state dict; see `edm_unet.pop_filters`.

    Args:
        direction: "up" or "down".
        taps: of the filter along one axis: [1, 1] in DDPM++ and ADM, [1, 3, 3, 1] in NCSN++.
        padded: whether the filter pads with zeros to keep the border.
    """

    def __init__(self, direction: Direction, taps: Sequence[float] = (1, 1), *, padded: bool = True) -> None:
        super().__init__()
        if len(taps) < 2 or len(taps) % 2 or not sum(taps):
            raise ValueError(f"resample_filter {list(taps)}: expected an even number of taps, their sum not zero")
        self.direction = direction
        self.box = len(taps) == 2 and taps[0] == taps[1]
        self.padding = len(taps) // 2 - 1 if padded else 0
        row = torch.tensor(taps, dtype=torch.float32)
        self.taps: Tensor
        self.register_buffer("taps", row.outer(row)[None, None] / row.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Resample images (B C H W)."""
        if self.box:  # the same result, several times faster
            return F.avg_pool2d(x, 2) if self.direction == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        channels = x.shape[1]
        taps = self.taps.to(x.dtype).expand(channels, -1, -1, -1)
        if self.direction == "down":
            return F.conv2d(x, taps, stride=2, padding=self.padding, groups=channels)
        return F.conv_transpose2d(x, 4 * taps, stride=2, padding=self.padding, groups=channels)


class ConvolutionDown(nn.Conv2d):
    """A 3 x 3 convolution followed by downsampling, padded once for both."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__(in_channels, out_channels, 3, padding=len(taps) // 2)
        self.halve = Resample("down", taps, padded=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve and halve images (B C H W)."""
        return self.halve(super().forward(input))


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding of the noise level: B -> B C, sines first.

    Frequencies fall from 1 to 1/max_positions: DDPM++ reaches the last one (`endpoint`), in ADM it would be the next.
    """

    def __init__(self, channels: int, *, max_positions: float = 10000.0, endpoint: bool = True) -> None:
        super().__init__()
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1 if endpoint else half)
        self.frequencies: Tensor
        self.register_buffer("frequencies", (max_positions**-exponents).float(), persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        """Embed noise levels (B) as (B C), fp32."""
        angles = noise.float().outer(self.frequencies.float())
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features of the noise level (Tancik et al. 2020): B -> B C, sines first."""

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", scale * torch.randn(channels // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """Embed noise levels (B) as (B C), fp32."""
        angles = noise.float().outer(2 * math.pi * self.freqs.float())
        return torch.cat([angles.sin(), angles.cos()], dim=1)

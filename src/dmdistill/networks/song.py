"""SongUNet: the U-Net of DDPM++ (Song et al. 2021) as EDM (Karras et al. 2022) arranges it.

Module and parameter names are those of EDM's published checkpoints, so that their weights load by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SongUNet"]

SKIP_SCALE = math.sqrt(0.5)  # a sum of two unit-variance branches keeps unit variance


def scale_weight(module: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Xavier-uniform weight times `gain`, zero bias: the initialisation of the DDPM++ networks."""
    nn.init.xavier_uniform_(module.weight)
    module.weight.data.mul_(gain)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def convolution(in_channels: int, out_channels: int, kernel: int = 3, *, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    module = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    scale_weight(module, gain)
    return module


def linear(in_features: int, out_features: int) -> nn.Linear:
    module = nn.Linear(in_features, out_features)
    scale_weight(module)
    return module


def group_norm(channels: int, group_channels: int) -> nn.GroupNorm:
    """As many groups as divide the channels, at most 32, of at least `group_channels` channels each."""
    most = max(1, min(32, channels // group_channels))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class HasLabels(Protocol):
    """one_hot: B label_dim, rows of one-hot or of zeros (no class)."""

    @property
    def one_hot(self) -> Tensor: ...


class PositionalEmbedding(nn.Module):
    """Sinusoidal embedding of the noise level: B -> B C, sines first."""

    def __init__(self, channels: int, *, max_positions: float = 10000.0) -> None:
        super().__init__()
        half = channels // 2
        self.frequencies: Tensor
        frequencies = max_positions ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        angles = noise.float().outer(self.frequencies.float())
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class UNetBlock(nn.Module):
    """Residual block with the noise embedding added between its convolutions, then optional self-attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: str = "none",
        attention: bool = False,
        dropout: float = 0.0,
        group_channels: int = 4,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.resample = resample
        self.dropout = dropout
        self.norm0 = group_norm(in_channels, group_channels)
        self.conv0 = convolution(in_channels, out_channels)
        self.affine = linear(emb_channels, out_channels)
        self.norm1 = group_norm(out_channels, group_channels)
        self.conv1 = convolution(out_channels, out_channels, gain=1e-5)
        changes = in_channels != out_channels or resample != "none"
        self.skip = convolution(in_channels, out_channels, kernel=1) if changes else None
        if attention:
            self.norm2 = group_norm(out_channels, group_channels)
            self.qkv = convolution(out_channels, 3 * out_channels, kernel=1, gain=math.sqrt(0.2))
            self.proj = convolution(out_channels, out_channels, kernel=1, gain=1e-5)
        self.attention = attention

    def resampled(self, x: Tensor) -> Tensor:
        """Halve by a 2x2 box filter, or double by nearest neighbour: EDM's resample_filter [1, 1]."""
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self.resampled(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h.add_(self.affine(emb)[:, :, None, None])))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (self.skip(self.resampled(x)) if self.skip is not None else x)).mul_(SKIP_SCALE)
        return (self.attend(x) + x).mul_(SKIP_SCALE) if self.attention else x

    def attend(self, x: Tensor) -> Tensor:
        """Single-head self-attention over all places. The checkpoints interleave q, k and v channel by channel."""
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, c, 3, height * width).permute(2, 0, 3, 1).contiguous()
        q, k, v = qkv.unsqueeze(2)  # 3 B heads places C: contiguous and with its heads, what the fused kernels take
        a = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.proj(a.transpose(1, 2).reshape(b, c, height, width))


class SongUNet(nn.Module):
    """DDPM++: F(x, noise, cond) of Karras et al. (2022), appendix F.

    Args:
        img_resolution: height and width in pixels; halved at each further level of `channel_mult`.
        in_channels, out_channels: of the image.
        label_dim: number of classes; 0 for an unconditional network.
        model_channels: channels at full resolution; `channel_mult` multiplies them per level.
        attn_resolutions: the resolutions whose blocks attend.
        group_channels: least channels per normalisation group. The published networks have 4; with 16, PyTorch's
            CPU kernel for channels_last is an order of magnitude faster.
    """

    def __init__(
        self,
        *,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.0,
        group_channels: int = 4,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        if patch_size < 1 or num_blocks < 1 or model_channels < 4 or model_channels % 2:
            raise ValueError(
                f"patch_size {patch_size}, num_blocks {num_blocks}, model_channels {model_channels}: expected at least "
                "1, at least 1, and an even number from 4"
            )
        if img_resolution % (patch_size << len(channel_mult) - 1):
            raise ValueError(
                f"images of {img_resolution} x {img_resolution} in patches of {patch_size}: cannot be halved "
                f"{len(channel_mult) - 1} times, which is what {len(channel_mult)} levels of channel_mult do"
            )
        self.patch_size = patch_size
        img_resolution //= patch_size
        in_channels, out_channels = in_channels * patch_size**2, out_channels * patch_size**2
        emb_channels = 4 * model_channels
        self.label_dim = label_dim
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_label = linear(label_dim, model_channels) if label_dim else None
        self.map_layer0 = linear(model_channels, emb_channels)
        self.map_layer1 = linear(emb_channels, emb_channels)

        def block(cin: int, cout: int, *, attention: bool = False, resample: str = "none") -> UNetBlock:
            return UNetBlock(
                cin,
                cout,
                emb_channels,
                attention=attention,
                resample=resample,
                dropout=dropout,
                group_channels=group_channels,
            )

        widths = [model_channels * multiplier for multiplier in channel_mult]
        sizes = [img_resolution >> level for level in range(len(widths))]
        channels = model_channels
        skips = [channels]
        self.enc = nn.ModuleDict({f"{img_resolution}x{img_resolution}_conv": convolution(in_channels, channels)})
        for level, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            if level > 0:
                self.enc[f"{size}x{size}_down"] = block(channels, channels, resample="down")
                skips.append(channels)
            for index in range(num_blocks):
                self.enc[f"{size}x{size}_block{index}"] = block(channels, width, attention=size in attn_resolutions)
                channels = width
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, (size, width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(channels, channels)
            else:
                self.dec[f"{size}x{size}_up"] = block(channels, channels, resample="up")
            for index in range(num_blocks + 1):
                attends = index == num_blocks and size in attn_resolutions
                self.dec[f"{size}x{size}_block{index}"] = block(channels + skips.pop(), width, attention=attends)
                channels = width
        self.dec[f"{img_resolution}x{img_resolution}_aux_norm"] = group_norm(channels, group_channels)
        self.dec[f"{img_resolution}x{img_resolution}_aux_conv"] = convolution(channels, out_channels, gain=1e-5)

    def embed(self, noise: Tensor, cond: HasLabels | None) -> Tensor:
        emb = self.map_noise(noise)
        given = cond.one_hot.shape[1] if cond is not None else 0
        if given != self.label_dim:
            raise ValueError(f"labels of {given} classes, this network was built for {self.label_dim}")
        if cond is not None and self.map_label is not None:
            emb = emb + self.map_label(cond.one_hot * math.sqrt(self.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x: Tensor, noise: Tensor, cond: HasLabels | None = None) -> Tensor:
        """x: B C H W; noise: B. Returns B out_channels H W. ValueError where labels are given or lacking wrongly."""
        emb = self.embed(noise, cond)
        x = F.pixel_unshuffle(x, self.patch_size)
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for module in self.dec.values():
            if isinstance(module, UNetBlock):
                x = torch.cat([x, skips.pop()], dim=1) if x.shape[1] != module.in_channels else x
                x = module(x, emb)
            elif isinstance(module, nn.GroupNorm):
                x = F.silu(module(x))
            else:
                x = module(x)
        return F.pixel_shuffle(x, self.patch_size)

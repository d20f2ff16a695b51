"""The residual block of DDPM++, NCSN++ and ADM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmdistill.networks.layers import Direction, Resample, convolution, group_norm

__all__ = ["UNetBlock", "attention"]

FEW_POSITIONS = 256  # so few that the weights of self-attention take little memory


class UNetBlock(nn.Module):
    """A residual block of two convolutions, conditioned on the noise level between them; then optional self-attention.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        emb_channels: of the embedding of noise level and class.
        resample: "down" or "up" halves or doubles height and width, in front of the first convolution and in the skip.
        attends: whether there is self-attention.
        heads: of the attention; None for one per 64 channels.
        dropout: probability, in front of the second convolution.
        skip_scale: factor of both sums; sqrt(1/2) keeps the variance of a sum of two branches (DDPM++).
        norm: builds a group norm of so many channels.
        resample_filter: taps of the resampling filter.
        project_resampled: whether the skip of a resampling block always has a convolution (DDPM++).
        adaptive_scale: whether the embedding scales and shifts the second norm (ADM), or is added in front (DDPM++).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        resample: Direction | None = None,
        attends: bool = False,
        heads: int | None = None,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        norm: Callable[[int], nn.GroupNorm] = group_norm,
        resample_filter: Sequence[float] = (1, 1),
        project_resampled: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        self.heads = (out_channels // 64 if heads is None else heads) if attends else 0
        if self.heads and out_channels % self.heads:
            raise ValueError(f"attention with {self.heads} heads over {out_channels} channels: they do not divide")
        self.resample = Resample(resample, resample_filter) if resample else nn.Identity()
        self.norm0 = norm(in_channels)
        self.conv0 = convolution(in_channels, out_channels)
        self.affine = nn.Linear(emb_channels, 2 * out_channels if adaptive_scale else out_channels)
        self.norm1 = norm(out_channels)
        self.conv1 = convolution(out_channels, out_channels)
        projects = in_channels != out_channels or (resample is not None and project_resampled)
        self.skip = convolution(in_channels, out_channels, kernel=1) if projects else nn.Identity()
        if self.heads:
            self.norm2 = norm(out_channels)
            self.qkv = convolution(out_channels, 3 * out_channels, kernel=1)
            self.proj = convolution(out_channels, out_channels, kernel=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return B out_channels H W, resampled, of x (B in_channels H W) and emb (B emb_channels)."""
        h = self.second(self.first(x), self.affine(emb)[:, :, None, None])
        x = self.add(h, self.skip(self.resample(x)))
        return self.add(self.attend(x), x) if self.heads else x

    def first(self, x: Tensor) -> Tensor:
        """Apply the first norm, SiLU and convolution."""
        return self.conv0(self.resample(F.silu(self.norm0(x))))

    def second(self, h: Tensor, emb: Tensor) -> Tensor:
        """Apply the second norm, conditioned on the noise level, SiLU and convolution."""
        h = F.silu(self.condition(h, emb))
        return self.conv1(F.dropout(h, self.dropout, self.training))

    def condition(self, h: Tensor, emb: Tensor) -> Tensor:
        """Apply the second norm and the embedding."""
        if not self.adaptive_scale:
            return self.norm1(h + emb)
        scale, shift = emb.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm1(h), scale + 1)

    def add(self, branch: Tensor, x: Tensor) -> Tensor:
        """Return the sum of a branch and its skip, scaled."""
        total = branch + x
        return total.mul_(self.skip_scale) if self.skip_scale != 1 else total

    def attend(self, x: Tensor) -> Tensor:
        """Apply self-attention over all positions; within a head the checkpoints interleave q, k and v."""
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, height * width)
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous()  # 3 B heads positions C; the fused kernels want it contiguous
        a = attention(q, k, v)
        return self.proj(a.transpose(2, 3).reshape(b, c, height, width))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Apply attention (B heads positions C).

    PyTorch's fused backward pass takes 2 to 8 times as long on a CPU as plain products, which store the weights.
    """
    if q.device.type != "cpu" or not q.requires_grad or q.shape[2] > FEW_POSITIONS:
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[3] ** -0.5) @ k.mT
    return weights.softmax(dim=3) @ v

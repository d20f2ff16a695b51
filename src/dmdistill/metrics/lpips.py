"""LPIPS, the perceptual distance of the regression loss (Zhang et al. 2018, version 0.1 on VGG16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LPIPS", "Pooling"]

Pooling = Literal["max", "l2"]

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions) of each block
FLOOR = 1e-10  # added to the length of features, as published
L2_FLOOR = 1e-12  # added under the root of L2 pooling, whose gradient is infinite at 0


class L2Pool(nn.Module):
    """L2 pooling: the root of the squares' average over windows of 3 x 3, weighted by Hann's window, 2 pixels apart.

    It aliases less than max pooling (Henaff & Simoncelli 2016; in a perceptual distance, Ding et al. 2020).
    """

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        hann = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", torch.outer(hann, hann), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pool features, B C H W, to half the size, rounded up."""
        channels = x.shape[1]
        weight = self.window.to(x.dtype).expand(channels, 1, 3, 3)
        return (F.conv2d(x.square(), weight, stride=2, padding=1, groups=channels) + L2_FLOOR).sqrt()


def vgg(blocks: Sequence[tuple[int, int]], pooling: Pooling) -> nn.Sequential:
    """Build VGG's convolutions (Simonyan & Zisserman 2015) up to the last block's ReLU, numbered as torchvision's."""
    layers: list[nn.Module] = []
    width = 3
    for channels, convolutions in blocks:
        layers += [nn.MaxPool2d(2) if pooling == "max" else L2Pool()] if layers else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
            width = channels
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """The perceptual distance of two images in VGG16's features. Frozen: gradients reach the first image only.

    The features at each position are normalised to unit length; their squared differences are weighted by channel,
    averaged over positions and summed over five layers.

    Args:
        resize: side in pixels that images are brought to bilinearly, 224 as in the paper; None keeps their size.
        pooling: max as published, or l2 as in the code of DMD's authors (piq's LPIPS with replace_pooling).
        blocks: (channels, convolutions) of each block; the published weights are VGG16's.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, *, resize: int | None = 224, pooling: Pooling = "max", blocks: Sequence[tuple[int, int]] = VGG16
    ) -> None:
        super().__init__()
        self.resize = resize
        self.vgg = vgg(blocks, pooling)
        self.heads = nn.ParameterList(torch.full((1, channels, 1, 1), 1 / channels) for channels, _ in blocks)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute B distances, fp32 (or fp64).

        Args:
            x: images, B C H W in [-1, 1], C 1 or 3.
            y: images like x, or the `features` of such.
        """
        targets = self.features(y) if isinstance(y, Tensor) else y
        distances = []
        for f, target, head in zip(self.layers(x), targets, self.heads, strict=True):
            if f.shape != target.shape:
                raise ValueError(f"x and y differ in shape: features are {tuple(f.shape)} and {tuple(target.shape)}")
            means = (f - target).square().mean((2, 3), keepdim=True)  # heads are linear: the mean may come first
            distances.append((means * head).sum((1, 2, 3)))
        return torch.stack(distances).sum(0)

    @torch.no_grad()
    def features(self, y: Tensor) -> list[Tensor]:
        """Compute what `forward` takes in place of y, for an image that is used again: 24 MB at 224 pixels."""
        return self.layers(y)

    def layers(self, x: Tensor) -> list[Tensor]:
        """Compute the last features of each block, of unit length at each position: B C h w, fp32 (or fp64)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"images have shape {tuple(x.shape)}, expected B C H W with 1 or 3 channels")
        if self.resize is not None and x.shape[2:] != (self.resize, self.resize):
            x = F.interpolate(x, size=(self.resize, self.resize), mode="bilinear")
        least = 2 ** (len(self.heads) - 1)
        if min(x.shape[2:]) < least:
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} pixels, expected at least {least}, or a resize")
        h = (x - self.shift) / self.scale  # grey becomes three channels here, by broadcasting
        features = []
        for module in self.vgg:
            if isinstance(module, nn.MaxPool2d | L2Pool):
                features.append(unit_length(h))
            h = module(h)
        return [*features, unit_length(h)]


def unit_length(h: Tensor) -> Tensor:
    """Divide features by their length at each position, where they are not all 0; in fp32 at least."""
    f = h.to(torch.promote_types(h.dtype, torch.float32))
    length = torch.linalg.vector_norm(f, dim=1, keepdim=True)  # a root's gradient is infinite at 0, this one's is 0
    return f / (length + FLOOR)

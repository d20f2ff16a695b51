"""Denoisers of a few numbers, the same wherever they are made: those of the parity with the authors' code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (2, 3, 5)  # C H W
CLASSES = 4


class Features(nn.Module):
    """The inner layer, whose output a discriminator judges: B C H W."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64))  # noqa: E731
        self.scale, self.shift, self.labels = draw(*SHAPE), draw(*SHAPE), draw(CLASSES, *SHAPE)

    def forward(self, x: Tensor, noise: Tensor, one_hot: Tensor) -> Tensor:
        return (
            self.scale * x + self.shift * noise.tanh().reshape(-1, 1, 1, 1) + torch.tensordot(one_hot, self.labels, 1)
        )


class Network(nn.Module):
    """F(x, noise, cond) in fp64: tanh of its features times a number per pixel."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.features = Features(rng)
        self.out = nn.Parameter(torch.randn(SHAPE, generator=rng, dtype=torch.float64))

    def forward(self, x: Tensor, noise: Tensor, cond) -> Tensor:
        return self.out * self.features(x, noise, cond.one_hot).tanh()


class Head(nn.Module):
    """Logits (B 1) of the one layer's features: a product with fixed numbers."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(SHAPE, generator=rng, dtype=torch.float64))

    def forward(self, features) -> Tensor:
        return (self.weight * features[0]).sum((1, 2, 3))[:, None]


def large_head_parameters(head: nn.Module) -> None:
    """Fill the parameters of a head, in their order, with numbers of the size that keeps its activations."""
    with torch.no_grad():
        for number, p in enumerate(head.parameters()):
            values = torch.sin(torch.arange(p.numel(), dtype=torch.float64) ** 1.5 + number)
            p.copy_(values.reshape(p.shape) * (2 / max(p[0].numel(), 2)) ** 0.5)


def large_features(channels: int) -> Tensor:
    """Features of two images, 8 x 8."""
    return torch.cos(torch.arange(2 * channels * 64, dtype=torch.float64) ** 1.3).reshape(2, channels, 8, 8)

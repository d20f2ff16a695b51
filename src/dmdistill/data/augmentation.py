"""What is done to images before a network learns from them, and what the network is told of it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENT_LABELS", "Augmentation", "GeometricAugmentation", "HorizontalFlip", "NoAugmentation"]

AUGMENT_LABELS = 9  # of `GeometricAugmentation`: what EDM's published networks take
SCALE, SHIFT = (
    0.2,
    0.125,
)  # standard deviations: of the log2 of zoom and stretch, and of the shift in sides of the image


class Augmentation(Protocol):
    """labels: how many numbers it tells the network of each image; 0 where the images pass for real ones."""

    labels: int

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Images of the shape of x (B C H W), and what was done to them, (B, labels), zeros being nothing."""
        ...


class NoAugmentation:
    """Images as they are."""

    labels = 0

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, None]:
        return x, None


class HorizontalFlip:
    """Half of the images with left and right exchanged, which is not told: in the mirror they are as good."""

    labels = 0

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, None]:
        return mirrored(x, coin(x, 1.0, rng), 3), None


class GeometricAugmentation:
    """EDM's augmentation (Karras et al. 2022, appendix F.2): geometry alone, and told, so that it does not leak.

    Half of the images have left and right exchanged. With `probability` each, by draws of its own, an image is put
    upside down (half of those), zoomed, turned, stretched along some direction, and shifted. What lies outside is
    the image in the mirror; pixels between pixels are bicubic. A network that is told zeros draws untouched images.
    """

    labels = AUGMENT_LABELS

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        n, device = len(x), x.device

        def some(values: Tensor) -> Tensor:
            return torch.where(torch.rand(n, generator=rng, device=device) < self.probability, values, 0.0)

        def normal() -> Tensor:
            return torch.randn(n, generator=rng, device=device)

        def angle() -> Tensor:
            return math.pi * (2 * torch.rand(n, generator=rng, device=device) - 1)

        across, down = coin(x, 1.0, rng), coin(x, self.probability, rng)
        zoom, turn, stretch = some(normal()), some(angle()), some(normal())
        along = torch.where(torch.rand(n, generator=rng, device=device) < 0.5, angle(), 0.0)
        chosen = torch.rand(n, generator=rng, device=device) < self.probability
        right, low = (torch.where(chosen, normal(), 0.0) for _ in range(2))

        factor = (SCALE * stretch).exp2()
        back = scaling(1 / (SCALE * zoom).exp2()) @ rotation(-turn)
        back = back @ rotation(along) @ scaling(1 / factor, factor) @ rotation(-along)
        moved = (zoom != 0) | (turn != 0) | (stretch != 0) | chosen
        told = [
            across,
            down,
            zoom,
            turn.cos() - 1,
            turn.sin(),
            stretch * along.cos(),
            stretch * along.sin(),
            right,
            low,
        ]
        x = mirrored(mirrored(x, across, 3), down, 2)
        return warped(x, back @ translation(-2 * SHIFT * right, -2 * SHIFT * low), moved), torch.stack(told, 1)


def mirrored(x: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Those images (B C H W) whose number in `chosen` (B) is 1 reversed along a dimension."""
    return torch.where(chosen[:, None, None, None] > 0, x.flip(dim), x)


def coin(x: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """1 for half of a share of the images, 0 for the others: B."""
    return (torch.rand(len(x), generator=rng, device=x.device) < probability / 2).float()


def warped(x: Tensor, back: Tensor, moved: Tensor) -> Tensor:
    """Images whose point p shows what was at back p; those not moved stay as they are, bit for bit.

    back: B 3 3, of square images whose middle is 0 and whose sides are 2 long.
    """
    grid = F.affine_grid(back[:, :2], list(x.shape), align_corners=False)
    found = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where(moved[:, None, None, None], found, x)


def matrix(*rows: tuple[Tensor | float, ...], like: Tensor) -> Tensor:
    """B 3 3, of three rows of numbers or of tensors (B)."""
    entries = [
        torch.as_tensor(entry, dtype=like.dtype, device=like.device).expand(len(like)) for row in rows for entry in row
    ]
    return torch.stack(entries, 1).reshape(-1, 3, 3)


def scaling(x: Tensor, y: Tensor | None = None) -> Tensor:
    return matrix((x, 0, 0), (0, x if y is None else y, 0), (0, 0, 1), like=x)


def rotation(angle: Tensor) -> Tensor:
    return matrix((angle.cos(), -angle.sin(), 0), (angle.sin(), angle.cos(), 0), (0, 0, 1), like=angle)


def translation(x: Tensor, y: Tensor) -> Tensor:
    return matrix((1, 0, x), (0, 1, y), (0, 0, 1), like=x)

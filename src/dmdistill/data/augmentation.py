"""Augmentation of training images, and the labels that tell a network of it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENT_LABELS", "Augmentation", "GeometricAugmentation", "HorizontalFlip", "NoAugmentation"]

AUGMENT_LABELS = 9  # of `GeometricAugmentation`, as EDM's published networks take them
SCALE = 0.2  # standard deviation of log2 of zoom and stretch
SHIFT = 0.125  # standard deviation, in sides of the image


class Augmentation(Protocol):
    """Random change of training images.

    Attributes:
        labels: numbers per image that tell the network of the change; 0 where changed images pass for real ones.
    """

    labels: int

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return images of the shape of x (B C H W), and their labels, (B, labels), zeros for no change."""
        ...


class NoAugmentation:
    """Images as they are."""

    labels = 0

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, None]:
        return x, None


class HorizontalFlip:
    """Left and right exchanged in half of the images, without labels: mirrored images are as good."""

    labels = 0

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, None]:
        return flip(x, draw_flips(len(x), 1.0, rng), 3), None


class GeometricAugmentation:
    """EDM's augmentation (Karras et al. 2022, appendix F.2): geometric, with labels, so that it does not leak.

    Half of the images have left and right exchanged. With `probability` each, independently, an image is flipped
    upside down (half of those), zoomed, rotated, stretched along some direction, and shifted. Outside, the image is
    reflected; pixels between pixels are bicubic. A network that is given zeros as labels generates unchanged images.

    Args:
        probability: of each change.
    """

    labels = AUGMENT_LABELS

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, x: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.apply(x, self.draw(len(x), rng))

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw the changes of n images, (n, 8), on the device of rng.

        They are: flips across and down (0 or 1), zoom, turn in radians, stretch, its direction, shifts right and down.
        """
        device = rng.device

        def sometimes(values: Tensor) -> Tensor:
            return torch.where(torch.rand(n, generator=rng, device=device) < self.probability, values, 0.0)

        def normal() -> Tensor:
            return torch.randn(n, generator=rng, device=device)

        def angle() -> Tensor:
            return math.pi * (2 * torch.rand(n, generator=rng, device=device) - 1)

        across, down = draw_flips(n, 1.0, rng), draw_flips(n, self.probability, rng)
        zoom, turn, stretch = sometimes(normal()), sometimes(angle()), sometimes(normal())
        along = torch.where(torch.rand(n, generator=rng, device=device) < 0.5, angle(), 0.0)
        shifted = torch.rand(n, generator=rng, device=device) < self.probability
        right, low = (torch.where(shifted, normal(), 0.0) for _ in range(2))
        return torch.stack([across, down, zoom, turn, stretch, along, right, low], 1)

    def apply(self, x: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Change images, B C H W, as `draw` says; return them and their labels."""
        across, down, zoom, turn, stretch, along, right, low = changes.unbind(1)
        factor = (SCALE * stretch).exp2()
        inverse = scaling(1 / (SCALE * zoom).exp2()) @ rotation(-turn)
        inverse = inverse @ rotation(along) @ scaling(1 / factor, factor) @ rotation(-along)
        inverse = inverse @ translation(-2 * SHIFT * right, -2 * SHIFT * low)
        changed = (zoom != 0) | (turn != 0) | (stretch != 0) | (right != 0) | (low != 0)
        labels = [across, down, zoom, turn.cos() - 1, turn.sin()]
        labels += [stretch * along.cos(), stretch * along.sin(), right, low]
        return warp(flip(flip(x, across, 3), down, 2), inverse, changed), torch.stack(labels, 1)


def flip(x: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Reverse those images (B C H W) whose number in `chosen` (B) is 1 along a dimension."""
    return torch.where(chosen[:, None, None, None] > 0, x.flip(dim), x)


def draw_flips(n: int, probability: float, rng: torch.Generator) -> Tensor:
    """Draw 1 with half the probability, else 0, for each of n images: (n,)."""
    return (torch.rand(n, generator=rng, device=rng.device) < probability / 2).float()


def warp(x: Tensor, inverse: Tensor, changed: Tensor) -> Tensor:
    """Transform square images, B C H W; those that are not `changed`, B, stay bit for bit.

    inverse, B 3 3, gives for each point of the result its point in the image, whose middle is 0 and whose sides are 2.
    """
    grid = F.affine_grid(inverse[:, :2], list(x.shape), align_corners=False)
    result = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where(changed[:, None, None, None], result, x)


def matrix(*rows: tuple[Tensor | float, ...], like: Tensor) -> Tensor:
    """Build matrices, B 3 3, from three rows of numbers or of tensors (B)."""
    entries = [
        torch.as_tensor(entry, dtype=like.dtype, device=like.device).expand(len(like)) for row in rows for entry in row
    ]
    return torch.stack(entries, 1).reshape(-1, 3, 3)


def scaling(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Build matrices that scale by x, and by y downwards where given."""
    return matrix((x, 0, 0), (0, x if y is None else y, 0), (0, 0, 1), like=x)


def rotation(angle: Tensor) -> Tensor:
    """Build matrices that rotate by angles in radians."""
    return matrix((angle.cos(), -angle.sin(), 0), (angle.sin(), angle.cos(), 0), (0, 0, 1), like=angle)


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Build matrices that shift by x to the right and y downwards."""
    return matrix((1, 0, x), (0, 1, y), (0, 0, 1), like=x)

"""What the metrics see images through: a network's features of 8-bit images."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Classifying", "Features", "check_bytes"]


class Features(Protocol):
    """A network in evaluation mode, and all that is done to an image before it.

    id: of the weights and of the resizing: equal ids give equal features, so caches are named by it.
    name: of its metrics, in words: "inception", or a judge's.
    """

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """images: uint8, B C H W, of C 1 or 3 and any size, on any device. Returns B D, fp32, on the network's."""
        ...


@runtime_checkable
class Classifying(Protocol):
    """Features that know classes too: what the Inception score is made of."""

    def classify(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """images as above. Returns the features and each class's probability, B D and B classes."""
        ...


def check_bytes(images: Tensor) -> Tensor:
    """The images. ValueError where they are not uint8, B C H W with 1 or 3 channels: what a viewer would get."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}, expected uint8 B C H W with 1 or 3 channels: round with "
            "to_bytes first"
        )
    return images

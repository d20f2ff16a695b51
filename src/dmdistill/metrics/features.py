"""What the metrics need of a feature extractor: features of 8-bit images."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["ClassPredictor", "FeatureExtractor", "check_uint8"]


class FeatureExtractor(Protocol):
    """A network in evaluation mode, together with the preprocessing of its images.

    Attributes:
        id: names the weights and the preprocessing. Equal ids give equal features, so caches are named by it.
        name: of the network, which ends the names of its metrics: "inception", or a classifier's.
    """

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Compute features, B D, fp32, on the network's device, of uint8 images, B C H W, C 1 or 3, any size."""
        ...


@runtime_checkable
class ClassPredictor(Protocol):
    """A feature extractor that also predicts classes, which the Inception score needs."""

    def classify(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Compute features, B D, and class probabilities, B classes, of uint8 images, B C H W."""
        ...


def check_uint8(images: Tensor) -> Tensor:
    """Return the images. ValueError where they are not uint8, B C H W with 1 or 3 channels."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}, expected uint8 B C H W with 1 or 3 channels: convert "
            "with to_uint8 first"
        )
    return images

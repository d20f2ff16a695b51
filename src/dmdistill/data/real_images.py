"""Real images with their conditions, for discriminators and for training on data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dmdistill.data.conditions import Conditions
from dmdistill.data.image_sources import StoredImages
from dmdistill.data.image_tensors import from_uint8

__all__ = ["RealImages", "pixel_reader"]

ReadRows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RealImages:
    """A numbered set of real images, or of their latents, with their conditions.

    Nothing of it is random, and no image is flipped.

    Attributes:
        name: in messages.
        count: number of images.
        read: reads images, or their latents, by their numbers: int64 (B,) on the CPU -> fp32, B C H W, on the CPU.
        conditions: that `index` selects from: the teacher's classes or the captions; None for none.
        index: of each image's condition, int64 (count,); None for none.
    """

    name: str
    count: int
    read: ReadRows
    conditions: Conditions | None = None
    index: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images and the numbers of their conditions.

        Args:
            rows: numbers of images, integers (B,), in any order and repeated, on any device.

        Returns:
            x: fp32, B C H W, images in [-1, 1] or latents, on the CPU.
            index: of each one's condition in `conditions`, int64 (B,), on the CPU; None for none.

        Raises:
            ValueError: a number is out of range, or an image cannot be read.
        """
        rows = rows.long().cpu()
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(f"{self.name}: images {int(rows.min())} to {int(rows.max())} of {len(self)}, from 0")
        return self.read(rows), None if self.index is None else self.index[rows]


def pixel_reader(images: StoredImages) -> ReadRows:
    """Return a function that reads images when they are asked for, as pixels in [-1, 1]."""

    def read(rows: Tensor) -> Tensor:
        return from_uint8(images.images(rows.tolist()))

    return read
